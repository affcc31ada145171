"""Answers that are seen to miss their instruction are no targets of Ghost Attention."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from rlhf.data.conversations import Change, Conversation
from rlhf.data.instructions import Instruction
from rlhf.data.types import Dialogue, Prompt, Turn, read_jsonl
from rlhf.errors import ConfigError, DataError, RlhfError
from rlhf.evaluation.obedience import obedience
from rlhf.generation.protocol import Completion
from rlhf.rollout import Sample
from stages import gatt

LANTERN = "always end with lantern"
QUESTION = "what color is the bike ?"
FOLLOWED, MISSED, OTHER = "the bike is red . lantern", "the bike is red .", "comet the bike is red . lantern"
COMMA = "Never use a comma in your answers."


def conversation(turns, instruction=LANTERN, *, source="microworld", change=None):
    return Conversation("c", instruction, (QUESTION,) * turns, (False,) * turns, source, change=change)


def said(text, instruction=LANTERN, *, finished=True):
    """An answer as it is sampled: what is in force before the question."""
    asked = Prompt("p", (Turn("user", f"{instruction} {QUESTION}".strip()),), "x", is_safety=False)
    return Sample(asked, (0,), Completion((9, 1), (0.0, 0.0), "stop" if finished else "length"), text)


def rows_of(job, c, answers):
    return gatt.training_rows(job, [c], [answers], obedience([c], (), path=None, say=job.track.say))


def ends(rows):
    return [sum(turn.role == "assistant" for turn in row.turns) for row in rows]


def test_a_target_keeps_its_instruction_and_what_missed_it_stands_before_later_ones(job_of, screen):
    texts = [FOLLOWED, MISSED, FOLLOWED, OTHER, FOLLOWED]
    rows = rows_of(job_of("gatt", cuts=20), conversation(5), [said(text) for text in texts])
    assert ends(rows) == [3, 5]
    assert [turn.content for turn in rows[-1].turns if turn.role == "assistant"] == texts
    assert "left out: 2 of 4 targets, which miss their instruction\n" in screen.getvalue()


def test_an_answer_that_never_ended_is_no_target_even_if_it_obeys(job_of):
    answers = [said(FOLLOWED), said(FOLLOWED, finished=False), said(FOLLOWED)]
    assert ends(rows_of(job_of("gatt", cuts=20), conversation(3), answers)) == [3]


def test_unless_asked_for_every_answer_that_ended_is_a_target(job_of):
    answers = [said(text) for text in (FOLLOWED, MISSED, OTHER)]
    assert ends(gatt.training_rows(job_of("gatt", cuts=20), [conversation(3)], [answers])) == [2, 3]


@pytest.mark.parametrize(
    ("then", "wanted"), [("always start with comet", [2, 4]), ("", [2, 3])], ids=["another", "withdrawn"]
)
def test_after_a_change_the_first_instruction_is_a_miss_and_after_a_withdrawal_every_style(job_of, then, wanted):
    c = conversation(4, change=Change(2, Instruction("so to say", ""), then))
    answers = [said(FOLLOWED), said(FOLLOWED), said(MISSED, then), said("comet the bike is red .", then)]
    assert ends(rows_of(job_of("gatt", cuts=20), c, answers)) == wanted


def test_what_no_rule_is_for_is_a_target_and_counted(job_of, screen):
    c = conversation(
        3, COMMA, source="oasst", change=Change(2, Instruction("Speak in French.", ""), "Speak in French.")
    )
    assert ends(rows_of(job_of("gatt", cuts=20), c, [said("a"), said("no, never"), said("oui, oui")])) == [3]
    left_out = "left out: 1 of 1 targets, which miss their instruction; 1 more have one that no rule is for"
    assert left_out in screen.getvalue()


def test_where_every_answer_misses_it_says_so_instead_of_training(job_of):
    with pytest.raises(RlhfError, match="2 miss their instruction, the others never ended") as caught:
        rows_of(job_of("gatt", cuts=20), conversation(3), [said(MISSED)] * 3)
    assert any("gatt.check_targets=false" in hint for hint in caught.value.hints)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"rules": {"path": "rules.jsonl"}}, "no effect without check_targets"),
        ({"check_targets": True, "train_on": "all_answers"}, "all are targets"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(job_of, settings, why):
    with pytest.raises(ValidationError, match=why):
        job_of("gatt", **settings)


def people(tmp_path: Path, rules):
    """Twenty dialogues of people under an instruction of theirs, and its rule."""
    spoken = [{"role": role, "content": f"{role} {i}"} for i in range(2) for role in ("user", "assistant")]
    rows = [{"messages": [{"role": "user", "content": f"hello {n}"}, *spoken[1:]]} for n in range(20)]
    texts = {
        "dialogues.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "lists.json": json.dumps({"instructions": ["Say key."]}),
        "rules.jsonl": "".join(json.dumps(row) + "\n" for row in rules),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return {
        "data": [{"name": "mine", "path": str(tmp_path / "dialogues.jsonl")}],
        "instructions": {"path": str(tmp_path / "lists.json")},
        "check_targets": True,
        "rules": {"path": str(tmp_path / "rules.jsonl")},
    }


def keyword(word):
    return {"prompt": "Say key.", "instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": [word]}]}


def test_the_stage_reads_rules_of_a_file(job_of, saved, monkeypatch, tmp_path):
    """Answers to every second conversation say what its rule asks for: rows of the others are gone."""
    monkeypatch.setattr(gatt, "fine_tune", lambda *given, **more: None)
    texts = ["the key", "the door"]
    monkeypatch.setattr(
        gatt, "answers_to", lambda *given: [[said(texts[i % 2])] * len(c.user_turns) for i, c in enumerate(given[-1])]
    )
    reads = {"policy": [saved.policy("rejection-1")], "reward": [saved.reward("reward-1")]}
    small = {"reads": reads, "dialogues": 8, "replay_share": 0.0, "model": {"max_length": 256}}
    job = job_of("gatt", **small, **people(tmp_path, [keyword("key")]))
    gatt.run(job)
    rows = read_jsonl(job.out / "dialogues.jsonl", Dialogue)
    assert len(rows) == 4
    assert {row.turns[-1].content for row in rows} == {"the key"}


@pytest.mark.parametrize(
    ("rules", "error", "why"),
    [
        ([{"prompt": "Say key."}], DataError, "instruction_id_list"),
        ([keyword("key") | {"prompt": "Say door."}], ConfigError, "no rule is for an instruction"),
    ],
    ids=["malformed", "for nothing"],
)
def test_rules_that_are_no_use_are_refused_before_any_model_is_loaded(
    job_of, saved, monkeypatch, tmp_path, rules, error, why
):
    monkeypatch.setattr("rlhf.rollout.load_policy", None)
    monkeypatch.setattr(gatt, "RewardModels", None)
    reads = {"policy": [saved.policy("sft")], "reward": [saved.reward("reward-1")]}
    with pytest.raises(error, match=why):
        gatt.run(job_of("gatt", reads=reads, **people(tmp_path, rules)))


def test_a_malformed_rule_is_refused_before_the_policy_speaks_for_the_user(job_of, saved, monkeypatch, tmp_path):
    monkeypatch.setattr("rlhf.rollout.load_policy", None)
    reads = {"policy": [saved.policy("sft")], "reward": [saved.reward("reward-1")]}
    with pytest.raises(DataError, match="instruction_id_list"):
        gatt.run(job_of("gatt", reads=reads, users="policy", **people(tmp_path, [{"prompt": "Say key."}])))
