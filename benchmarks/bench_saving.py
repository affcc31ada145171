"""What saving costs: a step with saves and without them in turn, and what a save takes by size.

The default interval is ten minutes. Here saves come every second, or as often as the rule allows that keeps them below
a fiftieth of the time, so that a run of seconds has some; at ten minutes they cost what one save takes in 600 s.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measure import Table, quiet
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import lives
import whole_steps

from rlhf.checkpoint import read_manifest
from rlhf.resume.preemption import Stop
from rlhf.resume.saves import Saves
from rlhf.tracking.track import Tracker

ROUNDS = 5
INTERVAL = 600.0
STEPS = {
    "sft": ["sft.epochs=30"],
    "ppo": ["ppo.iterations=20", "ppo.heldout_every=20", "ppo.batch_size=30"],
}


def side_by_side(table: Table, zygote: lives.Zygote, finished: Path, step: str) -> None:
    """Wall-clock and processor seconds of the step, with and without, and what the journal says the saves took."""
    wall: dict[str, list[float]] = {"1s": [], "1000h": []}
    computing: dict[str, list[float]] = {"1s": [], "1000h": []}
    saves: list[float] = []
    for number in range(ROUNDS):
        for every in ("1s", "1000h") if number % 2 else ("1000h", "1s"):
            with tempfile.TemporaryDirectory() as name:
                folder = lives.without(finished, step, Path(name))
                command = ["run", f"stage={step}", *lives.SMALL, *STEPS[step], f"save_every={every}"]
                assert zygote.run(command, folder) == 0, (folder / "log").read_text()[-2000:]
                manifest = read_manifest(folder / "runs" / "tiny" / step)
                wall[every].append(manifest["seconds"])
                computing[every].append(manifest["cpu_seconds"])
                events = map(json.loads, (folder / "runs" / "tiny" / "events.jsonl").read_text().splitlines())
                saves += [event["seconds"] for event in events if event["event"] == "save"]
    more = [
        [100 * (a / b - 1) for a, b in zip(seconds["1s"], seconds["1000h"], strict=True)]
        for seconds in (wall, computing)
    ]
    share = 100 * sum(saves) / sum(wall["1s"])
    at_default = 100 * statistics.mean(saves) / INTERVAL
    table.row(step, wall["1000h"], f"{len(saves) / ROUNDS:g}", saves, *more, f"{share:.2f}", f"{at_default:.3f}")


def by_size(table: Table, megabytes: int) -> None:
    """One save of so much state, as a training loop makes it, twice: the second has the disk's cache full."""
    tensors = {str(i): torch.rand(250_000) for i in range(megabytes)}
    with tempfile.TemporaryDirectory(dir=".") as name:
        track = Tracker(Path(name), run="test", step="sft", console=Console(file=io.StringIO()))
        saves = Saves(Path(name), key="key", track=track, every=0.0, stop=Stop(), note=lambda event, **more: None)
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            saves.write("loop", tensors)
            seconds.append(time.perf_counter() - began)
        track.close()
    table.row(f"{megabytes:,} MB", seconds, f"{100 * statistics.median(seconds) / INTERVAL:.3f}")


def unchanged(table: Table, finished: Path) -> None:
    """The same command again where nothing is to be done, as a process of its own."""
    command = [sys.executable, "-m", "rlhf", "run", *lives.SMALL]
    seconds = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        done = subprocess.run(command, cwd=finished.parents[1], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - began)
        assert done.stdout.count("  skip  ") == len(lives.STEPS), done.stdout
    table.row("rlhf run, all done", seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/reliability"), help="where the undisturbed run is kept")
    parser.add_argument("--steps", default=",".join(STEPS))
    options = parser.parse_args()
    quiet()
    zygote = lives.Zygote()
    finished = whole_steps.undisturbed(zygote, options.work.absolute())
    zygote.run(["run", *lives.SMALL], finished.parents[1])  # what other code has made stale
    rerun = Table("Nothing to do", ["command", "seconds"])
    unchanged(rerun, finished)
    rerun.show()
    sizes = Table("A save by size", ["state", "seconds", "one in ten minutes, %"])
    for megabytes in (10, 100, 400):
        by_size(sizes, megabytes)
    sizes.show()
    head = ["step", "seconds without", "saves a run", "seconds a save", "more wall-clock time, %", "more computing, %"]
    table = Table("Saving", [*head, "share of the time by the journal, %", "one save in ten minutes, %"])
    for step in filter(None, options.steps.split(",")):
        side_by_side(table, zygote, finished, step)
    zygote.close()
    table.note(f"{ROUNDS} runs each in turn; saves every second, or as often as a fiftieth of the time allows")
    table.show()


if __name__ == "__main__":
    main()
