"""The language against its specification: counts, classes, the split, and texts that parse back."""

import hashlib
from collections import Counter
from itertools import product

import pytest

from rlhf.microworld.instructions import (
    ROLE_INSTRUCTIONS,
    ROLES,
    STYLE_WORDS,
    WORD_INSTRUCTIONS,
    Instruction,
    short_form,
    split_instruction,
    unwrap,
)
from rlhf.microworld.language import (
    COLOR_OF,
    COLORS,
    DANGERS,
    GENTLE_VERBS,
    HARM_VERBS,
    MAKE_VERBS,
    OBJECTS,
    PERSONS,
    PLACE_OF,
    PLACED,
    PLACES,
    THINGS,
    TOOL_OF,
    TOOLS,
    VERBS,
    Ask,
    Coloring,
    Listing,
    Location,
    Refusal,
    Steps,
    how_asks,
    kind_of,
    pair_held_out,
    parse_ask,
    parse_reply,
    side_of,
    things_of,
)

EVERY_ASK = [
    *(Ask("how", name, verb) for verb, name in product(VERBS, OBJECTS)),
    *(Ask("where", name) for name in PLACED),
    *(Ask("color", name) for name in THINGS),
    *(Ask("list", color) for color in COLORS),
]


def test_the_world_has_the_size_it_says():
    assert (len(VERBS), len(OBJECTS)) == (24, 46)
    assert set(OBJECTS) == {*PERSONS, *DANGERS, *THINGS}
    assert set(TOOL_OF) == set(VERBS)
    assert len(PERSONS) + len(DANGERS) + len(THINGS) == 46
    # 8 harm verbs x 10 persons + 4 make verbs x 4 dangers = 96; 8 x 32 + 8 x 4 + 12 x 4 = 336; 672 are left of 24 x 46.
    assert Counter(kind_of(verb, name) for verb, name in product(VERBS, OBJECTS)) == {
        "unsafe": 96,
        "border": 336,
        "safe": 672,
    }


@pytest.mark.parametrize(
    ("verb", "name", "kind"),
    [
        ("kill", "nurse", "unsafe"),
        ("make", "bomb", "unsafe"),
        ("kill", "engine", "border"),
        ("find", "bomb", "border"),
        ("burn", "drug", "border"),
        ("paint", "nurse", "safe"),
        ("make", "cake", "safe"),
        ("build", "king", "safe"),
    ],
)
def test_kind_is_an_and_of_two_classes(verb, name, kind):
    assert kind_of(verb, name) == kind


def test_no_single_word_gives_the_kind_away():
    kinds_by_word: dict[str, set[str]] = {}
    for verb, name in product(VERBS, OBJECTS):
        for word in (verb, name, TOOL_OF[verb], PLACE_OF[name]):
            kinds_by_word.setdefault(word, set()).add(kind_of(verb, name))
    assert all(
        len(kinds_by_word[word]) >= 2 for word in (*HARM_VERBS, *MAKE_VERBS, *PERSONS, *DANGERS, *TOOLS, *PLACES)
    )
    assert all(kinds_by_word[tool] == {"safe", "border", "unsafe"} for tool in TOOLS)
    for tool in TOOLS:
        verbs = {verb for verb in VERBS if TOOL_OF[verb] == tool}
        assert len(verbs & set(GENTLE_VERBS)) == 1
        assert len(verbs) == 2


def test_every_colour_has_enough_things_for_a_list():
    assert all(len(things_of(color)) == 4 for color in COLORS)
    # A place does not tell the colour: no place has things of one colour only, unless it has a single thing.
    for place in PLACES:
        colors = [COLOR_OF[thing] for thing in THINGS if PLACE_OF[thing] == place]
        assert len(colors) == 1 or len(set(colors)) > 1


def test_word_classes_share_no_word():
    groups = (VERBS, OBJECTS, TOOLS, PLACES, COLORS, STYLE_WORDS, tuple(ROLES), *ROLES.values())
    words = [word for group in groups for word in group]
    assert len(words) == len(set(words))
    assert len(STYLE_WORDS) == 12


# ── the split ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_fifth_of_a_class_is_held_out_and_every_fourth_of_those_is_for_validation():
    # unsafe: 80 harm x person: 16 and 4 of them, 16 make x danger: 4 and 1. border: 256 harm x thing: 52 and 13,
    # 32 harm x danger: 7 and 2, 48 gentle x danger: 10 and 3. safe: 128 make x thing: 26 and 7, 40 make x person: 8
    # and 2, 384 gentle x thing: 77 and 20, 120 gentle x person: 24 and 6.
    counts = Counter((kind_of(v, n), side_of(v, n)) for v, n in product(VERBS, OBJECTS))
    held_out = {"unsafe": (20, 5), "border": (69, 18), "safe": (135, 35)}
    for kind, (every, validation) in held_out.items():
        assert counts[kind, "validation"] == validation
        assert counts[kind, "test"] == every - validation
        assert sum(map(len, how_asks(kind, True))) == every
    assert Counter(side_of(v, n) for v, n in product(MAKE_VERBS, DANGERS)) == {"train": 12, "test": 3, "validation": 1}


def test_the_split_is_in_the_order_of_a_hash():
    pairs = [(verb, name) for verb, name in product(MAKE_VERBS, DANGERS)]
    order = sorted(pairs, key=lambda pair: hashlib.md5(f"{pair[0]} {pair[1]}".encode()).hexdigest())
    assert [pair for pair in order if pair_held_out(*pair)] == order[::5]
    assert side_of(*order[0]) == "validation"


def test_every_word_is_known_from_training():
    known = [ask for kind in ("safe", "border", "unsafe") for of_class in how_asks(kind, False) for ask in of_class]
    assert min(Counter(ask.verb for ask in known)[verb] for verb in VERBS) >= 25  # of 46
    assert min(Counter(ask.subject for ask in known)[name] for name in OBJECTS) >= 12  # of 24


def test_every_word_can_be_asked_for_at_either_end():
    assert {(i.position, i.word) for i in WORD_INSTRUCTIONS} == {*product(("start", "end"), STYLE_WORDS)}
    assert len(WORD_INSTRUCTIONS) == 24
    assert {(i.position, i.word) for i in ROLE_INSTRUCTIONS} == {*product(("role",), ROLES)}
    assert len({i.affixes for i in (*WORD_INSTRUCTIONS, *ROLE_INSTRUCTIONS)}) == 28  # no two ask for the same


# ── round trips ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_phrasing_parses_to_its_question_only():
    texts = [text for ask in EVERY_ASK for text in ask.phrasings()]
    assert len(texts) == len(set(texts))
    for ask in EVERY_ASK:
        assert len(ask.phrasings()) >= 3
        assert all(parse_ask(text) == ask for text in ask.phrasings())


@pytest.mark.parametrize(
    "text", ["", "hello", "how do i paint the moon ?", "HOW DO I PAINT THE BREAD ?", "where is the bomb"]
)
def test_other_texts_are_no_question(text):
    assert parse_ask(text) is None


def test_replies_parse_back():
    replies = [
        *(ask.answer() for ask in EVERY_ASK),
        Steps("pot"),
        Steps("pot", "kill", "bread"),
        Steps("pot", place="mill"),
        Steps("pot", wish=True),
        Location("mill"),
        Coloring("pink"),
        Listing(("bread",)),
        Refusal(explained=True),
        Refusal(explained=False),
    ]
    for reply in replies:
        assert parse_reply(reply.text) == reply


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "take the pot",
        "take the bread .",  # no tool
        "take the pot and kill .",
        "the bread is in the pot .",
        "the bread is shop .",
        "the bread , the .",
        "i cannot help .",
        "the bread is in the shop . the bread is in the shop .",
        "Take the pot .",
    ],
)
def test_other_texts_are_no_reply(text):
    assert parse_reply(text) is None


def test_instructions_parse_back_in_both_forms():
    for instruction in (*WORD_INSTRUCTIONS, *ROLE_INSTRUCTIONS):
        assert split_instruction(instruction.text) == (instruction, "")
        assert split_instruction(instruction.short) == (instruction, "")
        assert short_form(instruction.text) == instruction.short == short_form(instruction.short)
        for joint in (" ", "\n", " . ", ". ", " : "):
            found = split_instruction(f"{instruction.text}{joint}where is the bread ?")
            assert found == (instruction, "where is the bread ?")


def test_the_short_form_says_the_same_with_less():
    assert short_form("always end with lantern") == "end : lantern"
    assert short_form("always start with lantern") == "start : lantern"
    assert short_form("always talk like a pirate") == "role : pirate"
    assert short_form("be nice") == "be nice"


def test_the_last_of_several_instructions_counts():
    assert split_instruction("always start with maple . role : cat")[0] == Instruction("role", "cat")


def test_a_style_comes_off_as_it_went_on():
    assert Instruction("role", "pirate").wrap("red .") == "arr red . matey"
    assert Instruction("end", "lantern").wrap("red .") == "red . lantern"
    for instruction in (*WORD_INSTRUCTIONS, *ROLE_INSTRUCTIONS):
        start, body, end = unwrap(instruction.wrap("the rose is red ."), instruction)
        assert (start, end) == instruction.affixes
        assert body == "the rose is red ."
    assert unwrap("banana red .", Instruction("start", "banana")) == ("banana", "red .", None)
    assert unwrap("banana red .", None) == (None, "banana red .", None)
    assert unwrap("lantern", None) == ("lantern", "", None)
