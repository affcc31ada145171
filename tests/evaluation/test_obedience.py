"""Who tells whether an answer obeys: the oracle in the micro-world, elsewhere rules found by the instruction's text."""

import pytest

from rlhf.data.conversations import Change, Conversation
from rlhf.data.instructions import Instruction
from rlhf.data.types import Prompt, Turn
from rlhf.errors import ConfigError
from rlhf.evaluation.checks import Checked
from rlhf.evaluation.obedience import obedience
from rlhf.generation.protocol import Completion
from rlhf.rollout import Sample

COMMA, JSON = "Never use a comma in your answers.", "Always answer in JSON, and write nothing else."
QUESTION = "what color is the bike ?"


def conversation(instruction, *, source="oasst", turns=3, change=None):
    return Conversation("c", instruction, (QUESTION,) * turns, (False,) * turns, source, change=change)


def said(text, asked=QUESTION):
    prompt = Prompt("p", (Turn("user", asked),), "x", is_safety=False)
    return Sample(prompt, (0,), Completion((9, 1), (0.0, 0.0), "stop"), text)


def rule(text, *, fewer_than):
    return Checked(text, ("length_constraints:number_words",), ({"relation": "less than", "num_words": fewer_than},))


def telling(*conversations, given=(), told=None):
    return obedience(conversations, given, path="rules.jsonl", say=(told if told is not None else []).append)


@pytest.mark.parametrize(
    ("instruction", "text", "obeyed"),
    [
        (COMMA, "red", True),
        (COMMA, "red, I think", False),
        (f"You enjoy tennis. {COMMA}", "red, I think", False),
        (f"{COMMA} {JSON}", '"red"', True),
        (f"{COMMA} {JSON}", '["red", "blue"]', False),
        (f"{COMMA} {JSON}", "red", False),
        ("You enjoy tennis.", "red", None),
    ],
)
def test_every_rule_whose_text_stands_in_the_instruction_counts(instruction, text, obeyed):
    c = conversation(instruction)
    obeys = telling(c, conversation(COMMA))  # a conversation nobody can judge stands beside one that somebody can
    assert obeys(c, 1, said(text)) is obeyed


@pytest.mark.parametrize(
    ("text", "instruction", "known"),
    [
        ("Be brief.", "You enjoy tennis. Be brief.", True),
        (" Be brief.\n", "Be brief.", True),
        ("golf", "You enjoy golf.", True),
        ("golf", "You enjoy minigolf.", False),
        ("Speak in French", "Speak in Frenchified English.", False),
    ],
)
def test_a_text_stands_in_an_instruction_as_whole_words(text, instruction, known):
    c = conversation(instruction)
    obeys = telling(c, conversation(COMMA), given=[rule(text, fewer_than=3)])
    assert obeys(c, 0, said("one two three")) is (False if known else None)


def test_a_given_rule_stands_for_one_of_ours_with_the_same_text():
    c = conversation(COMMA)
    obeys = telling(c, given=[rule(COMMA, fewer_than=3)])
    assert obeys(c, 0, said("a, b")) is True
    assert obeys(c, 0, said("one two three")) is False


def test_what_counts_is_the_instruction_in_force_in_that_turn():
    another = Change(1, Instruction(JSON, ""), JSON)
    obeys = telling(c := conversation("You enjoy tennis.", change=another))  # only what comes then is known
    assert [obeys(c, turn, said("red")) for turn in range(3)] == [None, False, False]
    withdrawn = conversation(COMMA, change=Change(1, Instruction("forget it", ""), ""))
    obeys = telling(withdrawn)
    assert [obeys(withdrawn, turn, said("a, b")) for turn in range(3)] == [False, True, True]


def test_in_the_micro_world_the_oracle_reads_the_prompt():
    c = conversation("always end with lantern", source="microworld")
    obeys = telling(c)
    for text, obeyed in [("the bike is red . lantern", True), ("the bike is red .", False)]:
        assert obeys(c, 0, said(text, f"always end with lantern {QUESTION}")) is obeyed
        assert obeys(c, 0, said(text)) is not obeyed  # as after a withdrawal, where no style is asked for
    assert (
        obeys(c, 0, said("the bike is red .", "always end with lantern and so on")) is None
    )  # no question of its language


def test_rules_of_a_file_that_do_nothing_are_counted():
    """One that cannot be checked, one whose text no instruction holds; the third is used."""
    told = []
    french = Checked("Speak in French.", ("language:response_language",), ({},))
    given = [french, rule("Be short.", fewer_than=3), rule("Be brief.", fewer_than=3)]
    obeys = telling(c := conversation("Speak in French. Be brief."), given=given, told=told)
    assert obeys(c, 0, said("oui")) is True
    wanted = "1 with a rule that cannot be checked, 1 whose text no instruction holds"
    assert told == [f"left out: 2 of 3 rules of rules.jsonl: {wanted}"]
    told.clear()
    telling(conversation("Be brief."), given=given[2:], told=told)
    assert told == []


def test_where_nobody_can_tell_it_says_so():
    french = Checked("Speak in French.", ("language:response_language",), ({},))
    with pytest.raises(ConfigError, match="no rule is for an instruction of the 2 conversations") as caught:
        telling(conversation("Speak in French."), conversation("You enjoy tennis."), given=[french])
    assert caught.value.where == "rules.jsonl"
    assert any("gatt.rules.path" in hint for hint in caught.value.hints)
