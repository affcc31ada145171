"""The whole recipe, every stage for real but at a hundredth of the size: what `make run` does, in a minute or two."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SMALL = [
    "rounds=2",
    "base.steps=40",
    "base.words=20000",
    "base.extension_steps=2",
    "model.hidden_size=64",
    "model.intermediate_size=128",
    "model.layers=2",
    "sft.data=[{name: microworld, limit: 200}]",
    "sft.epochs=1",
    "preferences.helpfulness_prompts=80",
    "preferences.safety_prompts=80",
    "preferences.test_prompts=40",
    "reward.epochs=1",
    "rejection.prompts=30",
    "rejection.samples_per_prompt=4",
    "rejection.temperature_prompts=8",
    "rejection.epochs=1",
    # So short a training is near chance, and its answers do not end.
    "rejection.max_truncated=1",
    *(f"{stage}.reward_gate=warn" for stage in ("rejection", "gatt", "ppo")),
    "gatt.dialogues=6",
    "gatt.min_turns=2",
    "gatt.max_turns=4",
    "gatt.epochs=1",
    "gatt.check_targets=false",  # answers of policies that have hardly learned miss their instruction
    "ppo.iterations=3",
    "ppo.batch_size=16",
    "ppo.minibatch_size=8",
    "ppo.heldout_prompts=16",
    "ppo.heldout_every=2",
    "ppo.max_kl=1000",
    "evaluate.prompts=16",
    "evaluate.best_of_prompts=4",
    "evaluate.best_of_samples=4",
    "evaluate.dialogues=3",
    "evaluate.turns=[2, 4]",
    "evaluate.samples=4",
    "wandb=disabled",
]
STEPS = [
    "base",
    "sft",
    "preferences-1",
    "reward-1",
    "rejection-1",
    "preferences-2",
    "reward-2",
    "rejection-2",
    "gatt",
    "ppo",
    "evaluate",
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def rlhf(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "rlhf", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which the small recipe has run once."""
    folder = tmp_path_factory.mktemp("recipe")
    done = rlhf("run", *SMALL, cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_every_step_leaves_a_finished_artefact(finished):
    for step in STEPS:
        manifest = json.loads((finished / "runs" / "tiny" / step / "manifest.json").read_text())
        assert manifest["step"] == step
        assert manifest["seconds"] > 0
        assert manifest["peak_rss_mb"] > 0
        assert manifest["tokens"] > 100  # trained on or generated
        assert manifest["decoder"] == (None if step.startswith(("base", "sft", "reward")) else "fused")


def test_the_report_keeps_its_contract(finished):
    report = json.loads((finished / "runs" / "tiny" / "report.json").read_text())
    assert set(report) >= {
        "run", "config", "versions", "total_seconds", "stages", "reward_models", "policies", "best_of", "temperature",
        "multi_turn", "claims",
    }  # fmt: skip
    assert list(report["policies"]) == ["base", "sft", "rejection-1", "rejection-2", "gatt", "ppo"]
    for row in report["policies"].values():
        assert set(row) >= {
            "reward_helpfulness", "reward_safety", "reward_combined", "gold_helpfulness", "gold_quality",
            "violation_rate", "false_refusal", "instruction_followed", "eos_rate", "length", "self_bleu",
        }  # fmt: skip
    assert set(report["multi_turn"]["before"]) == {"2", "4"}
    assert (finished / "runs" / "tiny" / "report.html").stat().st_size < 3_000_000


def test_running_again_does_nothing_in_two_seconds_and_says_why(finished):
    seconds = []
    for _ in range(3):  # what else the machine does can only make it slower
        started = time.monotonic()
        again = rlhf("run", *SMALL, cwd=finished)
        seconds.append(time.monotonic() - started)
        assert again.returncode == 0
        assert again.stdout.count("config, inputs and code unchanged") == len(STEPS)
    assert min(seconds) <= 2.0, seconds


def test_changing_kl_coef_would_rerun_ppo_and_evaluate_only(finished):
    plan = rlhf("plan", *SMALL, "ppo.kl_coef=0.07", cwd=finished).stdout
    steps, _, costs = plan.partition("\n\n")
    verdicts = {line.split()[0]: line.split()[1] for line in steps.splitlines()}
    assert set(verdicts) == set(STEPS)
    assert {step for step, verdict in verdicts.items() if verdict == "run"} == {"ppo", "evaluate"}
    assert "ppo.kl_coef changed from 0.2 to 0.07" in steps
    assert [line.split()[0] for line in costs.splitlines()[2:4]] == ["ppo", "evaluate"]


def test_a_killed_stage_is_made_again_and_finished_ones_are_not(finished, tmp_path):
    shutil.copytree(finished / "runs", tmp_path / "runs")
    command = [sys.executable, "-m", "rlhf", "run", *SMALL, "ppo.kl_coef=0.07"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "ppo" in line and "0/3" in line:
                break
        process.send_signal(signal.SIGKILL)
    again = rlhf("run", *SMALL, "ppo.kl_coef=0.07", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    skipped = [line.split()[0] for line in again.stdout.splitlines() if " skip " in line]
    assert skipped[: len(STEPS) - 2] == STEPS[:-2]
    assert "ppo" not in skipped  # evaluate is skipped if so short a PPO came out with the policy it began with
    manifest = json.loads((tmp_path / "runs" / "tiny" / "ppo" / "manifest.json").read_text())
    assert manifest["config"]["ppo"]["kl_coef"] == 0.07


def test_the_same_seed_gives_the_same_weights(finished, tmp_path):
    """Two runs of one recipe on one machine: base and SFT weights agree byte for byte."""
    done = rlhf("run", "stage=base,sft", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for step in ("base", "sft"):
        first, second = (
            (root / "runs" / "tiny" / step / "checkpoint" / "model.safetensors").read_bytes()
            for root in (finished, tmp_path)
        )
        assert first == second
