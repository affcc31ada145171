"""One of two processes is killed at random, again and again: the two that follow end as two that nobody disturbed.

The oracle is the first life, which is let be: SHA-256 of weights, metrics (without the seconds), samples, ledger.
"""

import json
import os
import random
import shutil
import signal
import time
from importlib.util import find_spec

import lives
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.timeout(900)]
KILLS = 5
ENGINES = {"ddp": {}, "fsdp": {"ACCELERATE_USE_FSDP": "true"}}
for stage in "23":
    ENGINES[f"zero{stage}"] = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}
absent = pytest.mark.skipif(not find_spec("deepspeed"), reason="needs deepspeed: pip install 'rlhf[deepspeed]'")


def cases(*rows):
    """Parameters of a test, each skipped without deepspeed if an engine of DeepSpeed's is among them."""
    return [pytest.param(*row, id="-".join(row), marks=[absent] * ("zero" in "".join(row))) for row in rows]


@pytest.mark.parametrize(
    ("step", "engine"),
    cases(
        *[(step, "ddp") for step in lives.KILLED],
        *[(step, engine) for engine in ("fsdp", "zero2", "zero3") for step in ("sft", "reward-2")],
        ("ppo", "fsdp"),
    ),
)
def test_killed_at_random_the_end_is_the_same_bit_for_bit(zygote, undisturbed, tmp_path, step, engine):
    folder = lives.without(undisturbed, step, tmp_path)
    how = {"settings": lives.BOTH, "processes": 2, "environment": ENGINES[engine]}
    found = lives.lives(zygote, folder, step, kills=KILLS, rng=random.Random(step), **how)
    assert found.kills == KILLS
    assert found.resumed or engine == "ddp"  # of what samples alone no save is kept
    assert len(found.ends) > 1
    assert all(end == found.ends[0] for end in found.ends)


@pytest.mark.parametrize(("step", "asked"), [("sft", [0, 1]), ("sft", [1]), ("rejection-2", [0, 1])])
def test_asked_to_stop_both_save_and_go_on(zygote, undisturbed, tmp_path, step, asked):
    folder = lives.without(undisturbed, step, tmp_path)
    run_dir = folder / "runs" / "tiny"
    command = ["run", f"stage={step}", *lives.SMALL, *lives.BOTH]  # at the default interval: nothing is due
    ends = []
    for stop in (True, False, False):
        pids = zygote.start_together(command, folder, {}, processes=2)
        working = run_dir / f".{step}.partial"
        while stop and not (working / "metrics.jsonl").exists() and not list(working.glob("resume/shards-*")):
            time.sleep(0.01)
        for rank in asked if stop else ():
            os.kill(pids[rank], signal.SIGTERM)
        codes = [zygote.wait() for _ in pids]
        assert codes == ([75, 75] if stop else [0, 0]), (folder / "log").read_text()[-3000:]
        if stop:
            assert [*working.glob("resume/save-*"), *working.glob("resume/shards-1-of-2.jsonl")]
        else:
            ends.append(lives.outcome(run_dir / step))
            shutil.rmtree(run_dir / step)
    assert ends[0] == ends[1]


def test_one_process_goes_on_from_a_save_of_two(zygote, undisturbed, tmp_path):
    """The rows of every step are the same: the ledger is that of the undisturbed run, the last bits are not."""
    folder = lives.without(undisturbed, "ppo", tmp_path)
    command = ["run", "stage=ppo", *lives.SMALL, "save_every=0s"]
    pids = zygote.start_together(command, folder, {}, processes=2)
    run_dir = folder / "runs" / "tiny"
    while not list(run_dir.glob(".ppo.partial/resume/save-*")):
        time.sleep(0.01)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert [zygote.wait() for _ in pids] == [-9, -9]
    assert zygote.run(command, folder) == 0
    assert "made by 2 processes: its last bits may differ" in (folder / "log").read_text()
    assert (run_dir / "ppo" / "ledger.jsonl").read_text() == (undisturbed / "ppo" / "ledger.jsonl").read_text()


SLOW = """
import os, time
from rlhf.resume import saves
real = saves.seal
def slow(*arguments):
    time.sleep(2)
    real(*arguments)
if os.environ["RANK"] == "0":
    saves.seal = slow
"""


def test_nobody_leaves_before_the_save_is_whole(zygote, undisturbed, tmp_path):
    """A launcher that sees a process leave ends the others, in the middle of the save if it is theirs to finish."""
    folder, hook = lives.without(undisturbed, "sft", tmp_path), tmp_path / "hook.py"
    hook.write_text(SLOW)
    command, working = ["run", "stage=sft", *lives.SMALL], folder / "runs" / "tiny" / ".sft.partial"
    pids = zygote.start_together(command, folder, {"RLHF_TEST_HOOK": str(hook)}, processes=2)
    while not (working / "metrics.jsonl").exists():
        time.sleep(0.01)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    while lives.computed(pids[1]) is not None:
        time.sleep(0.01)
    assert [path.name for path in working.glob("resume/save-*")] == ["save-000001"]
    assert [zygote.wait() for _ in pids] == [75, 75]


@pytest.mark.parametrize(
    ("step", "before", "after"),
    cases(
        *[(step, *engines) for step in ("sft", "ppo") for engines in (("ddp", "fsdp"), ("fsdp", "ddp"))],
        ("sft", "ddp", "zero2"),
        ("sft", "zero3", "zero2"),
    ),
)
def test_another_engine_goes_on_from_a_whole_save_of_the_trainer_and_is_refused_others(
    zygote, undisturbed, tmp_path, step, before, after
):
    folder = lives.without(undisturbed, step, tmp_path)
    command, run_dir = ["run", f"stage={step}", *lives.SMALL, "save_every=0s"], folder / "runs" / "tiny"
    pids = zygote.start_together(command, folder, ENGINES[before], processes=2)
    while not list(run_dir.glob(f".{step}.partial/resume/save-*")):
        time.sleep(0.01)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert [zygote.wait() for _ in pids] == [-9, -9]
    assert list(run_dir.glob(f".{step}.rank-*"))  # the second's folder
    pids = zygote.start_together(command, folder, ENGINES[after], processes=2)
    codes, said = [zygote.wait() for _ in pids], (folder / "log").read_text()
    assert not list(run_dir.glob(f".{step}.rank-*"))
    if (step, before, after) != ("sft", "ddp", "fsdp"):
        held = "all of it" if before == "ddp" else "a part"
        assert codes == [69, 69]
        assert f"made by 2 processes that each held {held}" in said
        assert f"go on with as many, under {before}" in said
    else:
        assert codes == [0, 0], said[-3000:]
        assert "made by 2 processes: its last bits may differ" in said
        assert (run_dir / "sft" / "ledger.jsonl").read_text() == (undisturbed / "sft" / "ledger.jsonl").read_text()


POISON = """
import os
from rlhf.training.row_trainer import RowTrainer
real, calls = RowTrainer.compute_loss, []
def poisoned(*arguments, **named):
    calls.append(1)
    loss = real(*arguments, **named)
    return loss * float("nan") if len(calls) == 5 and not isinstance(loss, tuple) else loss
if os.environ["RANK"] == "1":
    RowTrainer.compute_loss = poisoned
"""


def test_garbage_of_one_process_stops_both_and_the_bundle_names_its_rows(zygote, undisturbed, tmp_path):
    folder, hook = lives.without(undisturbed, "sft", tmp_path), tmp_path / "hook.py"
    hook.write_text(POISON)
    command = ["run", "stage=sft", *lives.SMALL, "save_every=0s"]
    pids = zygote.start_together(command, folder, {"RLHF_TEST_HOOK": str(hook)}, processes=2)
    codes, said = [zygote.wait() for _ in pids], (folder / "log").read_text()
    assert codes == [76, 76], said[-3000:]
    bundle = folder / "runs" / "tiny" / "bundles" / "sft" / "bundle.json"
    place = json.loads(bundle.read_text())["place"]
    assert place["tensor"] == "the loss"
    step = [json.loads(line) for line in (undisturbed / "sft" / "ledger.jsonl").read_text().splitlines()][place["step"]]
    assert step["step"] == place["step"]
    assert 0 < len(place["rows"]) < len(step["rows"])  # those of the one that met it
    assert set(place["rows"]) < set(step["rows"])
