"""Answers that are seen to miss their instruction are no targets of Ghost Attention."""

import json

import pytest
from pydantic import ValidationError

from rlhf.data.conversations import Change, Conversation
from rlhf.data.instructions import Instruction
from rlhf.data.types import Dialogue, Prompt, Turn, read_jsonl
from rlhf.errors import ConfigError, DataError, RlhfError
from rlhf.evaluation.checks import Checked
from rlhf.generation.protocol import Completion
from rlhf.rollout import Sample
from stages import gatt

COMMA, JSON = "Never use a comma in your answers.", "Always answer in JSON, and write nothing else."
QUESTION = "what color is the bike ?"
FOLLOWED, MISSED, OTHER = "the bike is red . lantern", "the bike is red .", "comet the bike is red . lantern"


def conversation(turns, instruction, *, source="microworld", change=None):
    return Conversation("c", instruction, (QUESTION,) * turns, (False,) * turns, source, change=change)


def said(c, *texts, finished=True):
    """Answers as they are sampled: the instruction in force before the question."""
    found = []
    for turn, text in enumerate(texts):
        asked = Prompt(str(turn), (Turn("user", f"{c.in_force(turn)} {QUESTION}".strip()),), c.source, is_safety=False)
        found.append(Sample(asked, (0,), Completion((9, 1), (0.0, 0.0), "stop" if finished else "length"), text))
    return found


def rows_of(job, c, texts, rules=()):
    kept = gatt.kept_by_rules(None, rules, [c])
    return gatt.training_rows(job, [c], [said(c, *texts)], kept)


def ends(rows):
    return [sum(turn.role == "assistant" for turn in row.turns) for row in rows]


def test_a_target_keeps_its_instruction_and_what_missed_it_stands_before_later_ones(job_of, screen):
    c = conversation(5, "always end with lantern")
    rows = rows_of(job_of("gatt", cuts=20), c, [FOLLOWED, MISSED, FOLLOWED, OTHER, FOLLOWED])
    assert ends(rows) == [3, 5]
    answers = [turn.content for turn in rows[-1].turns if turn.role == "assistant"]
    assert answers == [FOLLOWED, MISSED, FOLLOWED, OTHER, FOLLOWED]
    assert "left out: 2 of 4 targets, which miss their instruction\n" in screen.getvalue()


def test_unless_asked_for_every_answer_that_ended_is_a_target(job_of):
    c = conversation(3, "always end with lantern")
    rows = gatt.training_rows(job_of("gatt", cuts=20), [c], [said(c, FOLLOWED, MISSED, OTHER)])
    assert ends(rows) == [2, 3]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (Change(2, Instruction("always start with comet", ""), "always start with comet"), [2, 4]),
        (Change(2, Instruction("forget that .", ""), ""), [2, 3]),
    ],
    ids=["another", "withdrawn"],
)
def test_what_counts_is_the_instruction_in_force(job_of, change, wanted):
    """After a change the first one is a miss; after a withdrawal every style is."""
    c = conversation(4, "always end with lantern", change=change)
    texts = [FOLLOWED, FOLLOWED, MISSED, "comet the bike is red ."]
    assert ends(rows_of(job_of("gatt", cuts=20), c, texts)) == wanted


def test_rules_of_people_s_instructions_read_the_answer(job_of, screen):
    """Of a combination the part that a rule knows; of our own rules and of given ones."""
    c = conversation(4, f"You enjoy tennis. {COMMA}", source="oasst")
    rows = rows_of(job_of("gatt", cuts=20), c, ["a", "red, I think", "red", "well, red"])
    assert ends(rows) == [3]
    rule = Checked(
        "Answer me shortly.", ("length_constraints:number_words",), ({"relation": "less than", "num_words": 3},)
    )
    c = conversation(3, "Answer me shortly.", source="oasst")
    assert ends(rows_of(job_of("gatt", cuts=20), c, ["a", "it is red", "red"], [rule])) == [3]


def test_what_no_rule_knows_is_a_target_and_counted(job_of, screen):
    c = conversation(
        3, COMMA, source="oasst", change=Change(2, Instruction("Speak in French.", ""), "Speak in French.")
    )
    assert ends(rows_of(job_of("gatt", cuts=20), c, ["a", "no, never", "oui, oui"])) == [3]
    left_out = "left out: 1 of 1 targets, which miss their instruction; 1 more have one that no rule knows"
    assert left_out in screen.getvalue()


def test_a_user_who_does_not_speak_the_language_of_the_micro_world_cannot_be_judged(job_of):
    c = conversation(2, "always end with lantern")
    kept = gatt.kept_by_rules(None, (), [c])
    (answer,) = said(c, MISSED)
    strange = Prompt("x", (Turn("user", "always end with lantern and so on"),), c.source, is_safety=False)
    assert kept(c, 0, answer) is False
    assert kept(c, 0, Sample(strange, (0,), answer.completion, MISSED)) is None


def test_instructions_that_no_rule_knows_at_all_are_said_before_anything_is_sampled():
    c = conversation(2, "You enjoy tennis.", source="oasst")
    with pytest.raises(ConfigError, match="no rule knows an instruction of the 1 conversations") as caught:
        gatt.kept_by_rules("rules.jsonl", (Checked("Speak in French.", ("language:response_language",), ({},)),), [c])
    assert caught.value.where == "rules.jsonl"


def test_where_every_answer_misses_it_says_so_instead_of_training(job_of):
    with pytest.raises(RlhfError, match="all miss their instruction, or never ended"):
        rows_of(job_of("gatt"), conversation(3, "always end with lantern"), [MISSED] * 3)


def test_rules_without_a_check_are_refused(job_of):
    with pytest.raises(ValidationError, match="no effect without check_targets"):
        job_of("gatt", rules={"path": "rules.jsonl"})


def test_a_malformed_rule_is_refused_before_any_model_is_loaded(job_of, saved, monkeypatch, tmp_path):
    monkeypatch.setattr("rlhf.rollout.load_policy", None)
    monkeypatch.setattr(gatt, "RewardModels", None)
    (tmp_path / "rules.jsonl").write_text(json.dumps({"prompt": COMMA}) + "\n")
    reads = {"policy": [saved.policy("sft")], "reward": [saved.reward("reward-1")]}
    job = job_of("gatt", reads=reads, check_targets=True, rules={"path": str(tmp_path / "rules.jsonl")})
    with pytest.raises(DataError, match="instruction_id_list"):
        gatt.run(job)


def test_the_stage_leaves_out_what_the_oracle_sees_miss(job_of, saved, monkeypatch):
    """Answers that end as every second conversation asks: rows of the others are gone."""
    monkeypatch.setattr(gatt, "fine_tune", lambda *given, **more: None)
    held = [conversation(3, "always end with lantern"), conversation(3, "always end with pebble")]
    monkeypatch.setattr(gatt, "conversations_of", lambda *given: held)
    monkeypatch.setattr(gatt, "answers_to", lambda *given: [said(c, *[FOLLOWED] * 3) for c in held])
    reads = {"policy": [saved.policy("rejection-1")], "reward": [saved.reward("reward-1")]}
    found = {}
    for check in (False, True):
        job = job_of("gatt", reads=reads, check_targets=check, replay_share=0.0, model={"max_length": 256})
        gatt.run(job)
        found[check] = [row.turns[0].content for row in read_jsonl(job.out / "dialogues.jsonl", Dialogue)]
    assert set(found[False]) == {"always end with lantern", "always end with pebble"}
    assert set(found[True]) == {"always end with lantern"}
