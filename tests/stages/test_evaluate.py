"""Evaluation of checkpoints from anywhere, and of policies without a reward model: what is measured and what is not."""

import json
import time
from types import SimpleNamespace

import pytest

from rlhf.errors import ConfigError, DataError
from rlhf.evaluation.behaviour import kinds_of_prompts
from rlhf.evaluation.subject import Evaluation
from rlhf.models.reward_models import RewardModels
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
