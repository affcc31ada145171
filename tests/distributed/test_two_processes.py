"""Two processes make what one makes: every stage from the same inputs, over gloo, at the same global batch."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
MICROWORLD = [{"name": "microworld"}]
# Neither rows nor pairs divide into batches: the last ones are short.
RECIPE = {
    "rounds": 1,
    "threads": 1,
    "wandb": "disabled",
    "stages": ["base", "sft", "preferences", "reward", "rejection", "distill", "gatt", "ppo", "evaluate"],
    "model": {
        "max_length": 256,
        "hidden_size": 32,
        "intermediate_size": 64,
        "layers": 2,
        "heads": 2,
        "kv_heads": 1,
        "vocab_size": 768,
    },
    "base": {"data": MICROWORLD, "words": 30000, "steps": 60, "extension_steps": 0, "learning_rate": 4e-3},
    "sft": {
        "data": [{"name": "microworld", "limit": 300}],
        "learning_rate": 4e-3,
        "batch_size": 8,
        "row_length": 128,
        "epochs": 3,
    },
    "preferences": {
        "data": MICROWORLD,
        "helpfulness_prompts": 60,
        "safety_prompts": 60,
        "test_prompts": 10,
        "max_new_tokens": 12,
    },
    "reward": {"helpfulness_share": 1.0, "learning_rate": 4e-4, "batch_size": 16},
    # So short a training is near chance, and its answers seldom end.
    "rejection": {
        "data": MICROWORLD,
        "prompts": 24,
        "samples_per_prompt": 4,
        "temperature_prompts": 4,
        "max_new_tokens": 48,
        "max_truncated": 1.0,
        "learning_rate": 1e-3,
        "batch_size": 4,
        "row_length": 128,
        "epochs": 1,
        "reward_gate": "ignore",
    },
    "distill": {
        "data": MICROWORLD,
        "prompts": 32,
        "asked": "all",
        "keep": "all",
        "max_new_tokens": 48,
        "learning_rate": 1e-3,
        "batch_size": 4,
        "row_length": 128,
        "epochs": 1,
        "reward_gate": "ignore",
    },
    "gatt": {
        "data": MICROWORLD,
        "dialogues": 12,
        "max_turns": 3,
        "samples_per_turn": 4,
        "max_new_tokens": 48,
        "learning_rate": 1e-3,
        "batch_size": 4,
        "row_length": 128,
        "epochs": 1,
        "reward_gate": "ignore",
    },
    "evaluate": {
        "data": MICROWORLD,
        "prompts": 8,
        "best_of_prompts": 2,
        "best_of_samples": 2,
        "dialogues": 2,
        "turns": [2, 3],
        "attention": 1,
        "diversity_prompts": 0,
        "max_new_tokens": 12,
    },
    "ppo": {
        "data": MICROWORLD,
        "iterations": 4,
        "batch_size": 16,
        "minibatch_size": 8,
        "learning_rate": 3e-4,
        "critic_learning_rate": 3e-4,
        "max_new_tokens": 12,
        "heldout_prompts": 8,
        "heldout_every": 2,
        "max_kl": 100.0,
        "reward_gate": "ignore",
    },
}
STAGES = ("evaluate", "ppo", "gatt", "distill", "rejection", "reward", "preferences", "sft", "base")
ENGINES = {
    "fsdp": {"ACCELERATE_USE_FSDP": "true"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}
ABSENT = pytest.mark.skipif(not find_spec("deepspeed"), reason="needs deepspeed: pip install 'rlhf[deepspeed]'")
# Backwards: each stage reads what one process made.
AGAIN = """
import sys
from rlhf.cli import main
for stage in sys.argv[1:]:
    if code := main(["run", "config=small.yaml", f"stage={stage}", "--rerun"]):
        sys.exit(code)
"""
PYTHONPATH = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
ENVIRONMENT = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(1800)]


def rlhf(folder, *arguments):
    command = [sys.executable, "-m", "rlhf", "run", "config=small.yaml", *arguments]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)


def again(folder, stages, **variables):
    """Two processes make the stages again, started as accelerate's launcher starts them; what each of them said."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", AGAIN, *stages],
            cwd=folder,
            env={**ENVIRONMENT, **place, **variables, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    try:
        said = [process.communicate(timeout=900)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], said[0][-2000:] + said[1][-2000:]
    return said


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
    return folder, again(folder, STAGES)


@pytest.fixture(scope="module", params=["fsdp", pytest.param("zero3", marks=ABSENT)])
def cut(one, tmp_path_factory, request):
    """The same with models in parts; a base that is made is whole."""
    folder = tmp_path_factory.mktemp("cut")
    shutil.copytree(one, folder, dirs_exist_ok=True)
    again(folder, STAGES, **ENGINES[request.param])
    return folder


def weights(folder, artefact):
    checkpoint = folder / "runs" / "small" / artefact / "checkpoint"
    return {path.relative_to(checkpoint): load_file(path) for path in sorted(checkpoint.rglob("model.safetensors"))}


def distance(a, b):
    """Of all weights taken together: |a - b| / |a|."""
    difference = sum((a[name] - b[name]).double().square().sum() for name in a)
    return (difference / sum(a[name].double().square().sum() for name in a)).sqrt().item()


def assert_same_weights(one, other, artefact):
    alone, together = weights(one, artefact), weights(other, artefact)
    assert alone.keys() == together.keys() != set()
    for name in alone:
        assert distance(alone[name], together[name]) < 1e-5, name


@pytest.mark.parametrize("artefact", ["base", "sft", "reward-1", "rejection-1", "distill", "gatt", "ppo"])
def test_the_weights_are_those_of_one_process(one, two, artefact):
    assert_same_weights(one, two[0], artefact)


@pytest.mark.parametrize("artefact", ["base", "sft", "reward-1", "rejection-1", "distill", "gatt", "ppo"])
def test_so_are_weights_that_were_trained_in_parts(one, cut, artefact):
    assert_same_weights(one, cut, artefact)


@pytest.mark.parametrize(("before", "after"), [("rejection-1", "distill"), ("distill", "gatt"), ("gatt", "ppo")])
def test_training_moved_far_enough_for_that_to_mean_something(one, before, after):
    (start,), (end,) = weights(one, before).values(), weights(one, after).values()
    assert distance(start, end) > 1e-4


def assert_same_samples(one, other, name):
    alone, together = ((folder / "runs" / "small" / name).read_text() for folder in (one, other))
    strip = re.compile(r"-?\d+\.\d+(e-\d+)?")  # scores, whose last digits may differ
    assert strip.sub("", alone) == strip.sub("", together) != ""


@pytest.mark.parametrize("name", ["rejection-1/pool.jsonl", "distill/dialogues.jsonl", "gatt/dialogues.jsonl"])
def test_the_samples_are_those_of_one_process_in_its_order(one, two, name):
    assert_same_samples(one, two[0], name)


@pytest.mark.parametrize("name", ["rejection-1/pool.jsonl", "distill/dialogues.jsonl", "gatt/dialogues.jsonl"])
def test_so_are_those_of_policies_that_are_in_parts_between_their_answers(one, cut, name):
    assert_same_samples(one, cut, name)


def test_evaluate_finds_what_one_process_finds(one, two):
    assert_same_results(one, two[0])


def test_so_it_does_with_models_in_parts(one, cut):
    assert_same_results(one, cut)


def assert_same_results(one, other):
    def numbers(found, path=()):
        if isinstance(found, dict):
            return {key: value for name in found for key, value in numbers(found[name], (*path, name)).items()}
        if isinstance(found, list):
            return numbers(dict(enumerate(found)), path)
        return {path: found}

    read = [json.loads((folder / "runs/small/evaluate/results.json").read_text()) for folder in (one, other)]
    alone, together = (numbers(results) for results in read)
    assert alone.keys() == together.keys()
    assert len(alone) > 100
    for path, value in alone.items():
        same = pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value
        assert together[path] == same, path


@pytest.mark.parametrize("name", ["helpfulness.train.jsonl", "safety.train.jsonl"])
def test_the_pairs_are_those_of_one_process(one, two, name):
    """A draw may fall within the rounding of another batch's sums: then one answer is another from there on."""
    files = (folder / "runs" / "small" / "preferences-1" / name for folder in (one, two[0]))
    alone, together = (file.read_text().splitlines() for file in files)
    assert sum(a != b for a, b in zip(alone, together, strict=True)) <= 1 < 50 < len(alone)


def test_one_process_speaks_and_the_other_keeps_a_log(two):
    folder, said = two
    assert [words.count("the rest: same answers") for words in said] == [4, 0]
    assert "the rest: same answers" in (folder / "runs" / "small" / "logs" / "rank-1.log").read_text()
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


@pytest.mark.parametrize("launch", ["cpu-fsdp", pytest.param("cpu-zero2", marks=ABSENT)])
def test_the_launcher_cuts_models_too(one, tmp_path, launch):
    shutil.copytree(one, tmp_path, dirs_exist_ok=True)
    done = rlhf(tmp_path, f"launch={launch}", "stage=sft", "--rerun")
    assert done.returncode == 0, done.stderr
    assert_same_weights(one, tmp_path, "sft")
