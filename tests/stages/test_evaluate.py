"""Evaluation of checkpoints from anywhere, and of policies without a reward model: what is measured and what is not."""

import json
import time
from types import SimpleNamespace

import pytest
import torch

from rlhf.data.types import Prompt, Turn
from rlhf.errors import ConfigError, DataError
from rlhf.evaluation import behaviour
from rlhf.evaluation.behaviour import kinds_of_prompts
from rlhf.evaluation.subject import Evaluation
from rlhf.generation.protocol import Completion
from rlhf.models.reward_models import RewardModels, Scores
from rlhf.reporting.table import policy_sheet
from rlhf.rollout import Sample
from stages import evaluate

SMALL = {
    "prompts": 8, "max_new_tokens": 4, "best_of_prompts": 2, "best_of_samples": 2, "temperatures": [1.0],
    "dialogues": 2, "turns": [1, 2], "changes": 2, "unseen": ["always talk like a cat"], "attention": 2,
    "diversity_prompts": 1, "diversity_samples": 2, "diversity_temperatures": [0.5, 1.0], "samples": 2,
}  # fmt: skip


def test_one_checkpoint_by_itself(job_of, saved, policy):
    policy.config.max_position_embeddings = 512
    folder = saved.policy("elsewhere")
    rewards = saved.reward("models")
    started = time.monotonic()
    job = job_of(
        "evaluate", reads={"policies": [], "reward": [], "preferences*": []}, model={"max_length": 512},
        policies=[{"name": "gatt", "path": str(folder / "checkpoint")}],
        rewards={"path": str(rewards / "checkpoint")}, **SMALL,
    )  # fmt: skip
    evaluate.run(job)
    assert time.monotonic() - started < 60
    found = json.loads((job.out / "results.json").read_text())
    assert set(found["policies"]) == {"gatt"}
    assert set(found["multi_turn"]["after"]) == {"1", "2"}
    assert set(found["multi_turn"]["changed_after"]) == {"2"}
    assert set(found["multi_turn"]["unseen_after"]) == {"1", "2"}
    assert set(found["attention"]["after"]) == {"1", "2"}
    assert set(found["diversity"]["gatt"]) == {"factual", "creative"}
    assert found["win_rates"] == {}  # nobody to win against
    alone = found["policies"]["gatt"]["distributions"]
    assert list(alone) == ["helpfulness", "safety", "gold"]
    counts = [row["histogram"]["counts"] for prompts in alone.values() for row in prompts.values()]
    assert [sum(bins) for bins in counts] == [6, 2] * 3  # of eight prompts a quarter is unsafe
    logged = json.loads((job.out / "metrics.jsonl").read_text())
    assert sum(logged["eval/reward_safety_histogram"]["counts"]) == 8
    assert found["checks"] == {}


def test_two_policies_win_against_each_other_and_rules_are_checked(job_of, saved, policy, tmp_path):
    policy.config.max_position_embeddings = 512
    row = {"prompt": "how ?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    foreign = {"prompt": "q", "instruction_id_list": ["language:response_language"], "kwargs": [{"language": "fr"}]}
    (tmp_path / "checks.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(foreign) + "\n")
    reads = {"policies": [saved.policy("sft"), saved.policy("ppo")], "reward": [saved.reward("reward-1")]}
    job = job_of(
        "evaluate", reads={**reads, "preferences*": []}, model={"max_length": 512},
        checks={"path": str(tmp_path / "checks.jsonl")}, **SMALL,
    )  # fmt: skip
    evaluate.run(job)
    found = json.loads((job.out / "results.json").read_text())
    assert found["win_rates"]["against"] == "sft"
    # The same weights and the same random numbers: every answer ties.
    assert {row["rate"] for row in found["win_rates"]["ppo"]["own"].values()} == {0.5}
    assert found["checks"]["sft"]["n"] == 1  # the other rule needs more than the reply


def test_a_policy_that_is_not_there_is_named(job_of, saved):
    reads = {"policies": [saved.policy("sft")], "reward": []}
    with pytest.raises(ConfigError, match="names ppo, which this run does not make"):
        Evaluation.of(job_of("evaluate", reads=reads, policies=[{"name": "ppo"}]))
    with pytest.raises(ConfigError, match="no policy to evaluate"):
        Evaluation.of(job_of("evaluate", reads={"policies": [], "reward": []}))


def test_factual_and_creative_prompts_of_a_file_beside_the_micro_world(job_of, tmp_path):
    rows = [{"prompt": f"{kind} {i} ?", "kind": kind} for kind in ("factual", "creative") for i in range(4)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = {"name": "mine", "path": str(tmp_path / "asked.jsonl"), "use": "test"}
    job = job_of("evaluate", data=[{"name": "microworld"}, mine])
    found = kinds_of_prompts(SimpleNamespace(job=job), 3)
    assert {kind: [p.kind for p in prompts] for kind, prompts in found.items()} == {
        "factual": ["factual"] * 3, "creative": ["creative"] * 3,
    }  # fmt: skip


def test_a_prompt_that_leaves_no_room_is_refused_before_any_model_is_loaded(job_of, saved, monkeypatch):
    monkeypatch.setattr(RewardModels, "load", None)
    reads = {"policies": [saved.policy("sft")], "reward": [saved.reward("reward-1")], "preferences*": []}
    with pytest.raises(DataError, match="an answer of 120 exceed the context of 128"):
        evaluate.run(job_of("evaluate", reads=reads, prompts=4, max_new_tokens=120))


def said(text, source, kind="", *, is_safety=False):
    prompt = Prompt("p", (Turn("user", "how do i paint the bread ?"),), source, is_safety=is_safety, kind=kind)
    return Sample(prompt, (8,), Completion((9,), (0.0,), "stop"), text)


def measured(job, samples, *, safety):
    """The row of a policy whose answers get these scores of the safety model."""
    scores = Scores(torch.zeros(len(samples)), torch.tensor(safety), torch.zeros(len(samples)))
    return evaluate.measure(SimpleNamespace(job=job, rewards=lambda *_, **__: scores), samples)[0]


NO, YES = "i cannot help with that .", "take the ladder ."


def test_false_refusals_and_unsafe_answers_to_real_prompts(job_of):
    samples = [
        *(said(text, "people") for text in (NO, YES, YES, YES)),
        *(said(text, "people", "border") for text in (NO, YES)),
        *(said(text, "people", is_safety=True) for text in (NO, YES, YES, YES, YES)),
    ]
    row = measured(job_of("evaluate"), samples, safety=[-5.0] * 6 + [5.0, 5.0, 5.0, 5.0, -5.0])
    assert row["false_refusal"] == {"ordinary": 0.25, "borderline": 0.5}
    assert row["unsafe_by_reward_model"] == 0.2
    assert row["counted"] == {
        "false_refusal.ordinary": 4, "false_refusal.borderline": 2, "unsafe_by_reward_model": 5,
    }  # fmt: skip
    assert row["counted"].keys() | {"reward_helpfulness", "reward_safety", "reward_combined"} == row["interval"].keys()
    assert not {name for name in row if name.startswith("gold") or name in ("violation_rate", "instruction_followed")}
    sheet = policy_sheet({"policies": {"sft": row}})
    assert dict(zip(sheet.head, sheet.rows[0], strict=True)) == {
        "policy": "sft", "refuses border": "50%", "refuses plain": "25%", "RM reward": "0.00", "RM worst tenth": "0.00",
        "ends": "100%", "RM unsafe": "20%",
    }  # fmt: skip
    assert sheet.note == "n = 11 prompts each; refusals by their words, RM unsafe by a safety score below 0.5"


def test_where_there_is_an_oracle_it_alone_says_what_is_refused_and_what_is_unsafe(job_of):
    row = measured(job_of("evaluate"), [said(YES, "microworld", "safe", is_safety=True)], safety=[-5.0])
    assert row["false_refusal"] == {"ordinary": 0.0, "borderline": None}  # whatever the tag
    assert not row.keys() & {"unsafe_by_reward_model", "counted"}


def test_what_needs_the_oracle_is_said_to_be_left_out(job_of, screen, tmp_path):
    rows = [{"prompt": f"how {i} ?", "kind": "factual"} for i in range(2)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [{"name": "mine", "path": str(tmp_path / "asked.jsonl"), "use": "test"}]
    e = SimpleNamespace(job=job_of("evaluate", data=data, diversity_prompts=1), policies={"sft": tmp_path})
    assert behaviour.multi_turn(e) == {}
    e.policies = {}
    assert (behaviour.attention_on_instruction(e), behaviour.diversity(e)) == ({}, {})
    left_out = [line for line in screen.getvalue().splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 3
    for line, parts in zip(
        left_out,
        (
            ("many turns", "asked.jsonl:1", "messages"),
            ("attention", "asked.jsonl:1", "messages"),
            ("creative prompts", "`kind`"),
        ),
        strict=True,
    ):
        assert all(part in line for part in parts), line
    assert "factual" not in left_out[2]


def test_what_was_not_asked_for_is_not_said_to_be_left_out(job_of, screen, tmp_path):
    (tmp_path / "asked.jsonl").write_text('{"prompt": "how ?"}\n')
    data = [{"name": "mine", "path": str(tmp_path / "asked.jsonl"), "use": "test"}]
    e = SimpleNamespace(job=job_of("evaluate", data=data, diversity_prompts=0, attention=0), policies={})
    assert (behaviour.attention_on_instruction(e), behaviour.diversity(e)) == ({}, {})
    assert "left out" not in screen.getvalue()
