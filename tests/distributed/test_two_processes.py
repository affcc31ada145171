"""Two processes make what one makes: every stage from the same inputs, over gloo, at the same global batch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
MICROWORLD = [{"name": "microworld"}]
# 150 dialogues make 47 rows, and 59 pairs do not divide either: the last batches are short.
RECIPE = {
    "rounds": 1,
    "threads": 1,
    "wandb": "disabled",
    "stages": ["base", "sft", "preferences", "reward", "ppo"],
    "model": {
        "max_length": 256,
        "hidden_size": 32,
        "intermediate_size": 64,
        "layers": 2,
        "heads": 2,
        "kv_heads": 1,
        "vocab_size": 768,
    },
    "base": {"data": MICROWORLD, "words": 30000, "steps": 30, "extension_steps": 0, "learning_rate": 4e-3},
    "sft": {
        "data": [{"name": "microworld", "limit": 150}],
        "learning_rate": 1.5e-3,
        "batch_size": 8,
        "row_length": 128,
        "epochs": 1,
    },
    "preferences": {
        "data": MICROWORLD,
        "helpfulness_prompts": 60,
        "safety_prompts": 60,
        "test_prompts": 10,
        "max_new_tokens": 12,
    },
    "reward": {"helpfulness_share": 1.0, "learning_rate": 4e-4, "batch_size": 16},
    "ppo": {
        "data": MICROWORLD,
        "iterations": 3,
        "batch_size": 16,
        "minibatch_size": 8,
        "learning_rate": 1e-4,
        "critic_learning_rate": 1e-4,
        "max_new_tokens": 12,
        "heldout_prompts": 8,
        "heldout_every": 3,
        "max_kl": 100.0,
        "reward_gate": "ignore",
    },
}
pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def rlhf(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "rlhf", "run", "config=small.yaml", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run of one process."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    done = rlhf(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def two(one, tmp_path_factory):
    """The same folder, each stage made again from the same inputs by two processes."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(one, folder, dirs_exist_ok=True)
    found = {}
    for stage in ("ppo", "reward", "preferences", "sft", "base"):  # backwards: each reads what one process made
        found[stage] = rlhf(folder, "launch=cpu", f"stage={stage}", "--rerun")
        assert found[stage].returncode == 0, found[stage].stderr
    return folder, found


def weights(folder, artefact):
    checkpoint = folder / "runs" / "small" / artefact / "checkpoint"
    return {path.relative_to(checkpoint): load_file(path) for path in sorted(checkpoint.rglob("model.safetensors"))}


def distance(a, b):
    """Of all weights taken together: |a - b| / |a|."""
    difference = sum((a[name] - b[name]).double().square().sum() for name in a)
    return (difference / sum(a[name].double().square().sum() for name in a)).sqrt().item()


@pytest.mark.parametrize("artefact", ["base", "sft", "reward-1", "ppo"])
def test_the_weights_are_those_of_one_process(one, two, artefact):
    alone, together = weights(one, artefact), weights(two[0], artefact)
    assert alone.keys() == together.keys() != set()
    for name in alone:
        assert distance(alone[name], together[name]) < 1e-5, name


def test_ppo_moved_far_enough_for_that_to_mean_something(one):
    (start,), (end,) = weights(one, "sft").values(), weights(one, "ppo").values()
    assert distance(start, end) > 1e-4


@pytest.mark.parametrize("name", ["helpfulness.train.jsonl", "safety.train.jsonl"])
def test_the_pairs_are_those_of_one_process(one, two, name):
    alone, together = (folder / "runs" / "small" / "preferences-1" / name for folder in (one, two[0]))
    assert alone.read_text() == together.read_text()


def test_one_process_speaks_and_the_other_keeps_a_log(two):
    folder, found = two
    assert found["sft"].stdout.count("packed into") == 1
    assert "packed into" in (folder / "runs" / "small" / "logs" / "rank-1.log").read_text()
    assert not list((folder / "runs" / "small").glob(".*rank-*"))


def figures(entry):
    """A number, or of a histogram its ends and how much it holds: a score at the edge of two bins may be in either."""
    return [entry["low"], entry["high"], sum(entry["counts"])] if isinstance(entry, dict) else [entry]


def test_ppos_figures_are_those_of_all_processes(one, two):
    read = [(folder / "runs" / "small" / "ppo" / "metrics.jsonl").read_text().splitlines() for folder in (one, two[0])]
    for alone, together in zip(*(map(json.loads, lines) for lines in read), strict=True):
        assert alone.keys() == together.keys()
        for name in alone.keys() - {"time", "val/padding"}:  # who does which rows decides what is padded
            for a, b in zip(figures(alone[name]), figures(together[name]), strict=True):
                assert b == pytest.approx(a, rel=1e-4, abs=1e-5), name


def test_a_batch_that_does_not_divide_is_refused_before_anything_starts(one):
    done = rlhf(one, "launch=cpu", "sft.batch_size=7")
    assert done.returncode == 2
    assert "sft.batch_size (7) must be a multiple of microbatch_size * processes (2)" in done.stderr
