"""The corpora against what they promise: nothing held out in training, shares as configured, words of the language."""

import os
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from math import sqrt

import pytest

from rlhf.data.types import Turn
from rlhf.errors import ConfigError
from rlhf.microworld.corpus import (
    CREATIVE_FORMS,
    FACTUAL_FORMS,
    HOW_FORMS,
    DemonstrationMix,
    conversations,
    demonstrations,
    for_validation,
    is_creative,
    is_unsafe,
    pretraining_texts,
    prompts,
    vocabulary,
)
from rlhf.microworld.instructions import (
    ROLE_INSTRUCTIONS,
    ROLES,
    STYLE_WORDS,
    WORD_INSTRUCTIONS,
    short_form,
    split_instruction,
    unwrap,
)
from rlhf.microworld.language import (
    OBJECT_CLASSES,
    OBJECTS,
    PLACE_OF,
    TOOL_OF,
    VERB_CLASSES,
    VERBS,
    Coloring,
    Listing,
    Location,
    Steps,
    how_asks,
    kind_of,
    pair_held_out,
    parse_ask,
    parse_reply,
)
from rlhf.microworld.oracle import judge, read_prompt

MIX = {"safe": 0.5, "border": 0.25, "unsafe": 0.25}
DEED = re.compile(rf"\b({'|'.join(VERBS)}) the ({'|'.join(OBJECTS)})\b")
SPOKEN = re.compile(rf"\b(start|end)s? (?:with|:) ({'|'.join(STYLE_WORDS)})\b")
EVERY_INSTRUCTION = {*WORD_INSTRUCTIONS, *ROLE_INSTRUCTIONS}


def within(count, rate, samples):
    """Whether a binomial count is within four standard deviations of its mean (false alarm: 1 in 16,000)."""
    return abs(count - rate * samples) < 4 * sqrt(samples * rate * (1 - rate))


def assert_nothing_held_out(texts):
    for text in texts:
        for verb, name in DEED.findall(text):
            assert not pair_held_out(verb, name), text


def read(row):
    """The question of a prompt, and its instruction if it has one."""
    return read_prompt(row.turns)


@pytest.fixture(scope="module")
def prose():
    return pretraining_texts(random.Random(0), 525_000)


@pytest.fixture(scope="module")
def shown():
    return demonstrations(random.Random(0), 5000)


@pytest.fixture(scope="module")
def asked():
    return {
        held: prompts(random.Random(0), 2000, mix=MIX, instruction_share=0.4, held_out=held) for held in (False, True)
    }


# ── the split ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_scan_sees_what_is_held_out():
    ask = how_asks("safe", True)[0][0]
    for text in (*ask.phrasings(), ask.answer().text, f"sam wants to {ask.verb} the {ask.subject} and needs the pot ."):
        with pytest.raises(AssertionError):
            assert_nothing_held_out([text])


def test_pretraining_holds_nothing_held_out(prose):
    assert_nothing_held_out(prose)


def test_demonstrations_hold_nothing_held_out(shown):
    assert_nothing_held_out(turn.content for row in shown for turn in row.turns)


def test_training_prompts_hold_nothing_held_out_and_evaluation_prompts_nothing_else(asked):
    assert_nothing_held_out(turn.content for row in asked[False] for turn in row.turns)
    hows = {held: {ask for ask, _ in map(read, asked[held]) if ask.form == "how"} for held in (False, True)}
    assert all(ask.held_out for ask in hows[True])
    assert hows[False]
    assert hows[False].isdisjoint(hows[True])


def test_a_quarter_of_the_held_out_combinations_is_for_validation():
    rng = random.Random(0)
    for kind in MIX:
        every = {ask for of_class in how_asks(kind, True) for ask in of_class}
        rows = prompts(rng, 60 * len(every), mix={kind: 1.0}, instruction_share=0.5, held_out=True, forms=HOW_FORMS)
        sides = {side: {read(row)[0] for row in rows if for_validation(row) is side} for side in (True, False)}
        # By the combination: neither its wording nor an instruction moves a question to the other side.
        assert sides[True].isdisjoint(sides[False])
        assert sides[True] | sides[False] == every
        assert sides[True]  # of every kind there is something on either side, or drawing it would never end
        assert sides[False]
        assert within(len(sides[True]), 0.25, len(every))


def test_both_sides_are_asked_under_every_instruction(asked, shown):
    # 2,000 x .4 x .75 / 24: each word instruction 25 times on average, so that one is missed once in e^25.
    assert len(EVERY_INSTRUCTION) == 12 * 2 + 4
    for rows in asked.values():
        assert {instruction for _, instruction in map(read, rows) if instruction} == EVERY_INSTRUCTION
    assert {split_instruction(row.turns[0].content)[0] for row in shown} == {*EVERY_INSTRUCTION, None}


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        # Verbs are harm, make, gentle and objects persons, dangers, things; training pairs are four fifths of each.
        ("safe", {(1, 0): 1, (1, 2): 1, (2, 0): 1, (2, 2): 1}),  # the classes alike
        ("border", {(0, 1): 25, (0, 2): 204, (2, 1): 38}),  # 32 - 7, 256 - 52, 48 - 10: the pairs alike
        ("unsafe", {(0, 0): 64, (1, 1): 12}),  # 80 - 16, 16 - 4: the pairs alike
    ],
)
def test_safe_questions_are_drawn_by_class_and_the_others_by_pair(kind, counts):
    rows = prompts(random.Random(3), 4000, mix={kind: 1.0}, instruction_share=0.0, held_out=False, forms=HOW_FORMS)
    objects = {name: i for i, names in enumerate(OBJECT_CLASSES) for name in names}
    verbs = {verb: i for i, names in enumerate(VERB_CLASSES) for verb in names}
    drawn = Counter((verbs[ask.verb], objects[ask.subject]) for ask, _ in map(read, rows))
    assert drawn.keys() == counts.keys()
    for pair, n in counts.items():
        assert within(drawn[pair], n / sum(counts.values()), 4000)


@pytest.mark.parametrize("held_out", [False, True])
def test_conversations_keep_to_their_side(held_out):
    rows = conversations(random.Random(1), 1000, turns=(3, 20), held_out=held_out, instruction_share=0.8)
    assert within(sum(instruction is not None for instruction, _ in rows), 0.8, len(rows))
    assert {split_instruction(instruction)[0] for instruction, _ in rows if instruction} == EVERY_INSTRUCTION
    for instruction, questions in rows:
        assert 3 <= len(questions) <= 20
        asks = [parse_ask(question) for question in questions]
        assert all(ask is not None and (ask.form != "how" or ask.held_out is held_out) for ask in asks)
        if instruction is not None:
            found, rest = split_instruction(instruction)
            assert rest == ""
            assert short_form(instruction) == found.short


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_text_is_words_of_the_vocabulary(prose, shown, asked):
    words = set(vocabulary())
    texts = [*prose, *(turn.content for rows in (shown, *asked.values()) for row in rows for turn in row.turns)]
    for text in texts:
        assert set(text.split()) <= words, text
        assert text == " ".join(text.split()).lower()


def test_the_vocabulary_is_small_and_all_used(prose):
    words = vocabulary()
    assert 200 <= len(words) <= 250
    assert list(words) == sorted(set(words))
    assert all(re.fullmatch(r"[a-z]+|[.,?!:]", word) for word in words)
    assert set(words) == {word for text in prose for word in text.split()}


# ── pretraining ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pretraining_has_the_words_asked_for(prose):
    # Each of the 4 kinds of document ends at most one document, of at most 600 words, over its share.
    assert 525_000 <= sum(len(text.split()) for text in prose) < 525_000 + 4 * 600


def test_pretraining_teaches_what_a_held_out_answer_is_made_of(prose):
    text = "\n".join(prose)
    deeds = Counter(DEED.findall(text))
    kinds = ("safe", "border", "unsafe")
    known = [(ask.verb, ask.subject) for kind in kinds for of_class in how_asks(kind, False) for ask in of_class]
    assert set(deeds) == set(known)  # every pair that is not held out, and no other
    for name in OBJECTS:
        assert text.count(f"the {name} is in the ") > 10
    for verb in VERBS:
        assert text.count(f"to {verb} you take the ") + text.count(f"people {verb} with the ") > 20
    assert text.count("good luck !") > 1000
    assert text.count("i cannot help with that . it would hurt people .") > 50
    assert text.count("i cannot help with that .") > 100
    spoken = Counter(SPOKEN.findall(text))
    assert min(spoken[instruction.position, instruction.word] for instruction in WORD_INSTRUCTIONS) > 20
    assert all(
        text.count(f" {word}") > 20 for word in (*STYLE_WORDS, *(word for pair in ROLES.values() for word in pair))
    )
    assert max(len(document.split(" : ")) - 1 for document in prose) >= 2 * 18  # two colons an exchange
    assert "[INST]" not in text


def test_pretraining_states_facts_as_they_are(prose):
    for text in prose[:3000]:
        for sentence in re.findall(r"take the \w+ and \w+ the \w+ in the \w+ \. good luck !", text):
            steps = parse_reply(sentence)
            assert judge_steps(steps) == 1.0, sentence


def judge_steps(steps):
    """The content score of steps as the answer to the question they are about."""
    return judge([Turn("user", f"how do i {steps.verb} the {steps.subject} ?")], steps.text).content


# ── demonstrations and prompts ───────────────────────────────────────────────────────────────────────────────────────


def is_instructed(row):
    """Whether some turn, the system's or the user's, holds an instruction."""
    return any(split_instruction(turn.content)[0] is not None for turn in row.turns if turn.role != "assistant")


def verdicts(rows):
    """Verdicts on every reply of the dialogues."""
    return [
        judge(row.turns[:place], turn.content)
        for row in rows
        for place, turn in enumerate(row.turns)
        if turn.role == "assistant"
    ]


def test_demonstrations_have_their_shares(shown):
    instructed = [row for row in shown if is_instructed(row)]
    assert within(len(instructed), 0.45, len(shown))
    lengths = Counter(len(row.turns) // 2 for row in shown)
    assert all(within(lengths[turns], 0.25, len(shown)) for turns in (1, 2, 3, 4))
    alone = [row for row in instructed if len(row.turns) <= 3]
    assert within(sum(row.turns[0].role == "system" for row in alone), 0.5, len(alone))
    assert all(split_instruction(row.turns[-2].content)[0] or row.turns[-3].role == "system" for row in instructed)

    found = verdicts(shown)
    assert not any(verdict.malformed for verdict in found)
    by_kind = {kind: [verdict for verdict in found if verdict.kind == kind] for kind in MIX}
    for kind, share, refused in (("safe", 0.64, 0.02), ("border", 0.20, 0.40), ("unsafe", 0.16, 0.50)):
        assert within(len(by_kind[kind]), share, len(found))
        assert within(sum(verdict.refusal for verdict in by_kind[kind]), refused, len(by_kind[kind]))
    assert all(verdict.violation != verdict.refusal for verdict in by_kind["unsafe"])
    followed = [verdicts([row])[-1].followed for row in instructed]
    assert within(sum(followed), 0.98, len(followed))


def test_an_instruction_is_heeded_where_it_stands_and_not_beyond(shown):
    earlier = []  # of questions before the last: (stands under the instruction, is answered in its style)
    for row in filter(is_instructed, shown):
        told = False
        for turn in row.turns[:-2]:
            if turn.role != "assistant":
                told = told or split_instruction(turn.content)[0] is not None
            else:
                earlier.append((told, any(unwrap(turn.content, None)[place] for place in (0, 2))))
                told = False
    there = [styled for told, styled in earlier if told]
    assert within(len(there), 0.2, len(earlier))
    assert within(sum(there), 0.98, len(there))
    assert not any(styled for told, styled in earlier if not told)


def test_demonstrated_answers_are_as_terse_and_as_wrong_as_configured(shown):
    replies = [parse_reply(turn.content) for row in shown if not is_instructed(row) for turn in row.turns[1::2]]
    steps = [reply for reply in replies if hasattr(reply, "tool")]
    shapes = Counter((bool(reply.verb), bool(reply.place), reply.wish) for reply in steps)
    for shape, share in (
        ((False, False, False), 0.45),
        ((True, False, False), 0.25),
        ((True, True, False), 0.15),
        ((True, True, True), 0.15),
    ):
        assert within(shapes[shape], share, len(steps))
    # The tool belongs to the verb that is said, unless it slipped: 12 %.
    said = [reply for reply in steps if reply.verb]
    wrong = sum(judge_steps(replace(reply, place=None, wish=False)) == 0.2 for reply in said)  # .20 deed, no .40 tool
    assert within(wrong, 0.12, len(said))


def test_a_slip_of_the_deed_answers_a_question_close_to_the_one_asked(shown):
    turns = [turn.content for row in shown if not is_instructed(row) for turn in row.turns]
    answered = [
        (parse_ask(question), parse_reply(reply)) for question, reply in zip(turns[::2], turns[1::2], strict=True)
    ]
    said = [(ask, reply) for ask, reply in answered if ask.form == "how" and getattr(reply, "verb", None)]
    slipped = [(ask, reply) for ask, reply in said if (reply.verb, reply.subject) != (ask.verb, ask.subject)]
    assert within(len(slipped), 0.16, len(said))  # 12 % another object, 4 % another verb
    for ask, reply in slipped:  # the same verb or the same object, and as harmful or harmless as what was asked
        assert (reply.verb == ask.verb) != (reply.subject == ask.subject)
        assert kind_of(reply.verb, reply.subject) == ask.kind
    # Tool and place are right for the deed that is said, as often as for one that was asked.
    assert within(sum(reply.tool != TOOL_OF[reply.verb] for _, reply in slipped), 0.12, len(slipped))
    placed = [reply for _, reply in slipped if reply.place]
    assert within(sum(reply.place != PLACE_OF[reply.subject] for reply in placed), 0.12, len(placed))


def test_some_questions_are_taken_for_another_about_the_same_thing(shown):
    forms = {Steps: "how", Location: "where", Coloring: "color", Listing: "list"}
    turns = [turn.content for row in shown if not is_instructed(row) for turn in row.turns]
    pairs = [(parse_ask(question), parse_reply(reply)) for question, reply in zip(turns[::2], turns[1::2], strict=True)]
    safe = [(ask, reply) for ask, reply in pairs if ask.kind == "safe" and type(reply) in forms]
    misread = [(ask, reply) for ask, reply in safe if forms[type(reply)] != ask.form]
    assert within(len(misread), 0.04, len(safe))
    for ask, reply in misread:  # what is said of a thing is of the thing that was asked about, or of one of that colour
        named = getattr(reply, "subject", None)
        if ask.form != "list" and named and not isinstance(reply, Steps):
            assert named == ask.subject
        assert judge([Turn("user", ask.phrasings()[0])], reply.text).content == 0


def test_a_perfect_mix_is_perfect():
    mix = replace(DemonstrationMix(), followed=1, terse=0, deed=0, place=0, full=1, slot_wrong=0, verb_wrong=0)
    mix = replace(mix, repeated=1, form_wrong=0)
    mix = replace(mix, unsafe_complied=0, border_refused=0, safe_refused=0, explained=1)
    assert all(verdict.quality == 1.0 for verdict in verdicts(demonstrations(random.Random(2), 400, mix)))


def test_prompts_have_their_shares(asked):
    for rows in asked.values():
        kinds = Counter(row.kind for row in rows)
        assert all(within(kinds[kind], share, len(rows)) for kind, share in MIX.items())
        assert within(sum(map(is_instructed, rows)), 0.4, len(rows))
        assert within(sum(row.turns[0].role == "system" for row in rows), 0.2, len(rows))
        for row in filter(is_instructed, rows):  # in the long form, before the question
            assert row.turns[0].content.startswith(read(row)[1].text)
        assert all(row.is_safety == (row.kind == "unsafe") == (judge(row.turns, "").kind == "unsafe") for row in rows)
        assert len({row.id for row in rows}) == len(rows)


def test_only_unsafe_questions_are_tagged_under_an_instruction_or_not(asked):
    for row in (*asked[False], *asked[True]):
        assert is_unsafe(row.turns[-1].content) is row.is_safety
    assert not is_unsafe("good luck !")  # no question at all


def test_creative_prompts_are_the_lists(asked):
    assert {read_prompt(row.turns)[0].form for row in asked[True] if is_creative(row)} == {"list"}
    assert "list" not in {read_prompt(row.turns)[0].form for row in asked[True] if not is_creative(row)}
    for forms, creative in ((CREATIVE_FORMS, True), (FACTUAL_FORMS, False), (HOW_FORMS, False)):
        rows = prompts(random.Random(0), 40, mix={"safe": 1.0}, instruction_share=0.3, held_out=True, forms=forms)
        assert {is_creative(row) for row in rows} == {creative}


def test_an_id_depends_on_content_and_place_alone(asked):
    first = prompts(random.Random(0), 3, mix=MIX, instruction_share=0.4, held_out=True)
    assert [row.id for row in first] == [row.id for row in asked[True][:3]]
    assert first[2].id.endswith("-2")


def test_settings_that_cannot_be_are_refused():
    rng = random.Random(0)
    with pytest.raises(ConfigError, match="unknown kind of question 'saef'") as refused:
        prompts(rng, 1, mix={"saef": 1.0}, instruction_share=0, held_out=False)
    assert refused.value.hints == ("did you mean safe?",)
    with pytest.raises(ConfigError, match="must not be negative nor all zero"):
        prompts(rng, 1, mix={"safe": 0.0}, instruction_share=0, held_out=False)
    with pytest.raises(ConfigError, match=r"turns must be .* \(got \(3, 2\)\)"):
        conversations(rng, 1, turns=(3, 2), held_out=False, instruction_share=0)


# ── determinism ──────────────────────────────────────────────────────────────────────────────────────────────────────

DIGEST = """
import hashlib, random, sys
from rlhf.microworld import conversations, demonstrations, pretraining_texts, prompts, vocabulary
rng = random.Random(7)
made = [pretraining_texts(rng, 5000), demonstrations(rng, 50), vocabulary()]
made += [prompts(rng, 50, mix={"safe": 1, "unsafe": 1}, instruction_share=0.5, held_out=True)]
made += [conversations(rng, 20, turns=(1, 5), held_out=False, instruction_share=0.5)]
print(hashlib.sha256(repr(made).encode()).hexdigest(), "torch" in sys.modules)
"""


def test_a_seed_gives_the_same_data_in_every_process_and_without_torch():
    outputs = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        ran = subprocess.run(
            [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        outputs.add(ran.stdout)
    assert len(outputs) == 1
    assert outputs.pop().split()[1] == "False"


def test_another_seed_gives_other_data():
    assert demonstrations(random.Random(0), 5) == demonstrations(random.Random(0), 5)
    assert demonstrations(random.Random(0), 5) != demonstrations(random.Random(1), 5)
    assert pretraining_texts(random.Random(0), 200) != pretraining_texts(random.Random(1), 200)
