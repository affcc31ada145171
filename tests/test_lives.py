"""Killed with SIGKILL at random, again and again, every step ends with what an undisturbed run ends with, bit for bit.

The oracle is the undisturbed run: SHA-256 of weights, metrics (without the seconds), samples, ledger, pool, results.
`make bench-reliability` does the same with thirty lives and more.
"""

import os
import random
import shutil
import signal
import time

import lives
import pytest

from stages import PIPELINE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
KILLS = 5


@pytest.fixture(scope="module")
def finished(undisturbed):
    assert '"save"' not in (undisturbed / "events.jsonl").read_text()
    return undisturbed


@pytest.mark.parametrize("step", lives.KILLED)
def test_killed_at_random_the_end_is_the_same_bit_for_bit(zygote, finished, tmp_path, step):
    folder = lives.without(finished, step, tmp_path)
    found = lives.lives(zygote, folder, step, kills=KILLS, rng=random.Random(step))
    assert found.kills == KILLS
    assert found.ends
    assert all(end == lives.outcome(finished / step) for end in found.ends)


def test_every_stage_is_killed():
    assert sorted(step.partition("-")[0] for step in lives.KILLED) == sorted(stage.name for stage in PIPELINE)


def test_every_sample_was_trained_on_exactly_once_per_epoch(zygote, finished):
    folder = finished.parents[1]
    assert zygote.run(["audit", *lives.SMALL], folder) == 0
    table = (folder / "log").read_text()
    for step, parts in {"base": ("pretrain", "extend"), "reward-2": ("helpfulness", "safety"), "ppo": ("ppo",)}.items():
        for part in parts:
            assert [line for line in table.splitlines() if line.split()[:2] == [step, part]]
    assert table.count("each sample exactly once per epoch") >= 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_asked_to_stop_it_saves_exits_with_75_and_goes_on(zygote, finished, tmp_path, number):
    folder = lives.without(finished, "sft", tmp_path)
    command = ["run", "stage=sft", *lives.SMALL]  # at the default interval: nothing is due
    pid = zygote.start(command, folder)
    metrics = folder / "runs" / "tiny" / ".sft.partial" / "metrics.jsonl"
    while not metrics.exists():
        time.sleep(0.01)
    os.kill(pid, number)
    assert zygote.wait() == 75
    assert list((folder / "runs" / "tiny" / ".sft.partial" / "resume").glob("save-*"))
    assert zygote.run(command, folder) == 0
    assert "sft goes on from save 1" in (folder / "log").read_text()
    assert lives.outcome(folder / "runs" / "tiny" / "sft") == lives.outcome(finished / "sft")


def test_a_changed_setting_starts_the_killed_step_over_and_says_why(zygote, finished, tmp_path):
    folder = lives.without(finished, "sft", tmp_path)
    pid = zygote.start(["run", "stage=sft", *lives.SMALL, "save_every=0s"], folder)
    saves = folder / "runs" / "tiny" / ".sft.partial" / "resume"
    while not list(saves.glob("save-*")):
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    zygote.wait()
    assert zygote.run(["run", "stage=sft", *lives.SMALL, "sft.learning_rate=1e-4"], folder) == 0
    said = (folder / "log").read_text()
    assert "sft starts over: sft.learning_rate changed from 0.0015 to 0.0001 since it was interrupted" in said


GARBAGE = """
import torch
from rlhf.models import load
real = load.{loader}
def poisoned(*arguments):
    model = real(*arguments)
    body, seen = model.{module}, []
    def hook(module, inputs, output):
        seen.append(1)
        if len(seen) < {call} or not torch.is_grad_enabled():
            return None
        if {backward}:
            output.register_hook(lambda gradient: gradient * float("nan"))
            return None
        return output * float("nan")
    body.register_forward_hook(hook)
    return model
load.{loader} = poisoned
import stages.{stage} as stage
stage.{loader} = poisoned
"""


@pytest.mark.parametrize(
    ("step", "loader", "module", "backward", "what"),
    [
        ("sft", "policy_to_train", "model.norm", False, "the loss is not finite at step 3 of sft"),
        ("sft", "policy_to_train", "model.norm", True, "the gradient of "),
        ("reward-2", "reward_model_from_policy", "score", False, "the loss is not finite at step 3 of helpfulness"),
        ("ppo", "load_policy", "model.norm", True, "the gradient of the policy is not finite"),
        ("ppo", "load_reward_model", "score", True, "the gradient of the critic is not finite"),
    ],
)
def test_garbage_stops_before_the_step_leaves_a_bundle_and_is_met_again(
    zygote, finished, tmp_path, step, loader, module, backward, what
):
    folder = lives.without(finished, step, tmp_path)
    hook = tmp_path / "hook.py"
    calls = {"stage": step.partition("-")[0], "loader": loader, "module": module, "backward": backward, "call": 3}
    hook.write_text(GARBAGE.format(**calls))
    environment = {"RLHF_TEST_HOOK": str(hook)}
    command = ["run", f"stage={step}", *lives.SMALL, "save_every=0s"]
    assert zygote.run(command, folder, environment) == 76
    said = (folder / "log").read_text()
    assert what in said
    bundle = folder / "runs" / "tiny" / "bundles" / step
    assert f"rlhf replay {bundle.relative_to(folder)}" in said
    (folder / "log").unlink()
    assert zygote.run(["replay", str(bundle)], folder) == 0  # without the poison it gets past
    assert "gets past it now" in (folder / "log").read_text()
    assert zygote.run(command, folder) == 0  # and the last save was finite: it goes on to the undisturbed end
    assert lives.outcome(folder / "runs" / "tiny" / step) == lives.outcome(finished / step)
    shutil.rmtree(folder / "runs")
