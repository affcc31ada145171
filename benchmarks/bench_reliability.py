"""What survives: kills, damage, two starters, garbage and power cuts, each row with its tries and failures.

    python benchmarks/bench_reliability.py --rows commit,damage,locks
    python benchmarks/bench_reliability.py --rows lives --kills 30 --steps sft,ppo

Rows: commit (strace), damage, locks, power (root and loop devices), garbage, lives. A row that cannot run here says so.
The last two train the small recipe of tests/lives.py and compare with an undisturbed run, kept in --work.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import commits
import races
from measure import Table, quiet, short

from rlhf.checkpoint import verify, working_folder
from rlhf.errors import MissingError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import lives

PLACES = 8
RACES = 100
CUTS = 20
SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
NO_LOG_FLUSH = struct.pack("I", 2)
# What runs in the child before the step: the third call of a module on the way to the loss, or its gradient, is NaN.
POISON = """
import torch
from rlhf.models import load
real = load.{loader}
def poisoned(*arguments):
    model = real(*arguments)
    seen = []
    def hook(module, inputs, output):
        seen.append(1)
        if len(seen) < 3 or not torch.is_grad_enabled():
            return None
        if {backward}:
            output.register_hook(lambda gradient: gradient * float("nan"))
            return None
        return output * float("nan")
    model.{module}.register_forward_hook(hook)
    return model
load.{loader} = poisoned
import stages.{stage} as stage
stage.{loader} = poisoned
"""
POISONED = [
    ("sft", "policy_to_train", "model.norm"),
    ("sft", "policy_to_train", "lm_head"),
    ("reward-2", "reward_model_from_policy", "model.norm"),
    ("reward-2", "reward_model_from_policy", "score"),
    ("ppo", "load_policy", "model.norm"),
    ("ppo", "load_policy", "lm_head"),
    ("ppo", "load_reward_model", "score"),
]


class Row:
    """Tries of one kind, and how they went."""

    def __init__(self) -> None:
        self.tries, self.failures, self.seconds = 0, list[str](), list[float]()

    def tried(self, problem: str | None, seconds: float | None = None) -> None:
        self.tries += 1
        if problem:
            self.failures.append(problem)
            print("failed:", problem, flush=True)
        if seconds is not None:
            self.seconds.append(seconds)

    def cells(self) -> list[str]:
        ordered = sorted(self.seconds)
        middle = f"{short(ordered[len(ordered) // 2])} (at most {short(ordered[-1])})" if ordered else ""
        return [str(self.tries), str(len(self.failures)), middle]


# --- killed at every system call of a commit ---


def commit_row(table: Table, options: argparse.Namespace) -> None:
    if shutil.which("strace") is None:
        table.row("kill at every system call of a commit", "not run: no strace", "", "")
        return
    row = Row()
    with tempfile.TemporaryDirectory() as name:
        kept = Path(name) / "kept"
        commits.prepare(kept)
        log = Path(name) / "calls"
        killed(kept, Path(name) / "whole", ["-o", str(log)])
        calls = Counter(line.partition("(")[0] for line in log.read_text(encoding="utf-8").splitlines() if "(" in line)
        for call, times in sorted(calls.items()):
            for when in range(1, times + 1):
                if call == "exit_group":
                    continue
                inject = ["-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={when}"]
                folder = Path(name) / "try"
                code, confirmed = killed(kept, folder, inject)
                if code == -signal.SIGKILL:
                    row.tried(*commits.judged(folder, confirmed))
                else:
                    print(f"no kill at {call} {when}: {code}", flush=True)
                shutil.rmtree(folder)
    table.row("kill at every system call of a commit (3 saves, then an artefact over an old one)", *row.cells())


def killed(kept: Path, folder: Path, arguments: list[str]) -> tuple[int, list[str]]:
    """Commit in a copy of `kept` under strace: how the writer ended, and what it had confirmed."""
    shutil.copytree(kept, folder)
    child, let_go, confirmed = commits.forked(folder, saves=3)
    tracer = subprocess.Popen(["strace", "-qq", "-p", str(child), *arguments])
    while "TracerPid:\t0" in Path(f"/proc/{child}/status").read_text(encoding="utf-8"):
        time.sleep(0.001)
    os.write(let_go, b"!")
    os.close(let_go)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    tracer.wait()
    return code, commits.said(confirmed)


# --- damage ---


def damage_row(table: Table, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        kept, folder = Path(name) / "kept", Path(name) / "try"
        commits.prepare(kept)
        child, let_go, confirmed = commits.forked(kept, saves=10**6)
        os.write(let_go, b"!")
        with os.fdopen(confirmed) as lines:
            while int(lines.readline()) < 3:
                pass
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        commits.judged(kept, [])  # what the kill left half is cleared away
        out = working_folder(Path("sft")).name
        newest, previous = sorted((kept / out / "resume").glob("save-*"), reverse=True)[:2]
        for what, of in (("save", newest), ("artefact", kept / "sft")):
            row = Row()
            for file in sorted(path for path in of.rglob("*") if path.is_file()):
                others = [previous / file.name] if of is newest else []
                others += [other for other in of.iterdir() if other.is_file() and other != file]
                for how, data in damages(file, others):
                    shutil.copytree(kept, folder)
                    target = folder / file.relative_to(kept)
                    target.unlink() if data is None else target.write_bytes(data)
                    began = time.perf_counter()
                    found = save_damage(folder / out) if of is newest else artefact_damage(folder / "sft")
                    row.tried(None if found else f"{file.name} {how}: not seen", time.perf_counter() - began)
                    shutil.rmtree(folder)
            table.row(
                f"flip, truncate, zero, delete, swap: every file of {'a ' if what == 'save' else 'an '}{what}",
                *row.cells(),
            )


def damages(file: Path, others: list[Path]) -> Iterator[tuple[str, bytes | None]]:
    """A file's content after each damage; None if it is gone."""
    data = file.read_bytes()
    for place in sorted({len(data) * i // PLACES for i in range(PLACES)} | {len(data) - 1}):
        flipped = bytearray(data)
        flipped[place] ^= 1
        yield f"flipped at {place}", bytes(flipped)
        yield f"cut at {place}", data[:place]
        zeroed = data[:place] + bytes(len(data[place : place + 16])) + data[place + 16 :]
        if zeroed != data:
            yield f"zeroed at {place}", zeroed
    yield "deleted", None
    for other in others:
        if (swapped := other.read_bytes()) != data:
            yield f"swapped with {other.parent.name}/{other.name}", swapped


def save_damage(out: Path) -> bool:
    """Whether the newest save was refused, loudly, and the one before it taken."""
    events: list[str] = []
    reader = commits.opened(out, lambda event, **more: events.append(event))
    newest = max(int(path.name[5:]) for path in (out / "resume").glob("save-*"))
    save = reader.begin("loop")
    reader.track.close()
    return "damaged save" in events and save is not None and save.number == newest - 1


def artefact_damage(folder: Path) -> bool:
    try:
        verify(folder)
    except MissingError:
        return True
    return False


# --- two starters ---


def locks_row(table: Table, options: argparse.Namespace) -> None:
    """The winner of each race is killed, so the next race starts on its lock."""
    row = Row()
    with tempfile.TemporaryDirectory() as name:
        for _ in range(RACES):
            row.tried(*races.race(Path(name)))
    table.row("two starters on one run folder; the winner killed, and again", *row.cells())


# --- power cuts ---


def power_row(table: Table, options: argparse.Namespace) -> None:
    """A file system that forgets what was not made durable: ext4 on a loop device, shut down without its log."""
    what = "power cut at a random time of a commit (ext4)"
    row, rng = Row(), random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        image, disk = Path(name) / "image", Path(name) / "disk"
        disk.mkdir()
        try:
            with image.open("wb") as file:
                file.truncate(64 << 20)
            shell("mkfs.ext4", "-q", str(image))
            shell("mount", "-o", "loop", str(image), str(disk))
        except (OSError, subprocess.CalledProcessError) as error:
            table.row(what, f"not run: {error}", "", "")
            return
        try:
            for number in range(CUTS):
                folder = disk / f"try-{number}"
                commits.prepare(folder)
                os.sync()
                child, let_go, confirmed = commits.forked(folder, saves=rng.choice([3, 10**6]))
                os.write(let_go, b"!")
                os.close(let_go)
                time.sleep(rng.uniform(0.0, 0.5))
                handle = os.open(disk, os.O_RDONLY)
                fcntl.ioctl(handle, SHUTDOWN, NO_LOG_FLUSH)
                os.close(handle)
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                shell("umount", str(disk))
                shell("mount", "-o", "loop", str(image), str(disk))
                row.tried(*commits.judged(folder, commits.said(confirmed)))
                shutil.rmtree(folder)
        finally:
            shell("umount", str(disk))
    table.row(what, *row.cells())


def shell(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


# --- whole stages ---


def undisturbed(zygote: lives.Zygote, work: Path) -> Path:
    """The reference, made once."""
    found = work / "reference" / "runs" / "tiny"
    return found if (found / "evaluate").is_dir() else lives.reference(zygote, work / "reference")


def garbage_row(table: Table, options: argparse.Namespace) -> None:
    """Exit code 76, and the resumed step, freed of the poison, ends as the undisturbed one did."""
    row, zygote = Row(), lives.Zygote()
    finished = undisturbed(zygote, options.work)
    for step, loader, module in POISONED:
        for backward in (False, True):
            with tempfile.TemporaryDirectory(dir=options.work) as name:
                folder, hook = lives.without(finished, step, Path(name)), Path(name) / "hook.py"
                stage = step.partition("-")[0]
                hook.write_text(POISON.format(stage=stage, loader=loader, module=module, backward=backward))
                command = ["run", f"stage={step}", *lives.SMALL, "save_every=0s"]
                code = zygote.run(command, folder, {"RLHF_TEST_HOOK": str(hook)})
                where = f"{step}, {module}, {'gradient' if backward else 'output'}"
                problem = None if code == 76 else f"{where}: exit code {code}"
                began = time.monotonic()
                if problem is None and zygote.run(command, folder) != 0:
                    problem = f"{where}: not resumed"
                if problem is None and not same(folder, finished, step):
                    problem = f"{where}: another end"
                row.tried(problem, time.monotonic() - began)
    zygote.close()
    table.row("NaN in an output or gradient: stopped, resumed, the same end", *row.cells())


def lives_row(table: Table, options: argparse.Namespace) -> None:
    zygote = lives.Zygote()
    finished = undisturbed(zygote, options.work)
    for step in options.steps.split(","):
        with tempfile.TemporaryDirectory(dir=options.work) as name:
            folder, row, took = lives.without(finished, step, Path(name)), Row(), list[float]()
            rng = random.Random(step)
            longest = 1.2 * float(verify(finished / step)["seconds"])
            lives.lives(zygote, folder, step, kills=options.kills, rng=rng, longest=longest, log=took)
            row.tries, row.seconds = options.kills, took
            if not same(folder, finished, step):
                row.failures.append("another end")
            table.row(f"random kill -9 of {step}: the same end bit for bit", *row.cells())
    zygote.close()


def same(folder: Path, finished: Path, step: str) -> bool:
    return lives.outcome(folder / "runs" / "tiny" / step) == lives.outcome(finished / step)


ROWS: dict[str, Callable[[Table, argparse.Namespace], None]] = {
    "commit": commit_row,
    "damage": damage_row,
    "locks": locks_row,
    "power": power_row,
    "garbage": garbage_row,
    "lives": lives_row,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--kills", type=int, default=30, help="kills a step")
    parser.add_argument("--steps", default="base,sft,preferences-2,reward-2,rejection-2,gatt,ppo,evaluate")
    parser.add_argument("--work", type=Path, default=Path("runs/reliability"), help="where the undisturbed run is kept")
    options = parser.parse_args()
    options.work = options.work.absolute()
    options.work.mkdir(parents=True, exist_ok=True)
    quiet()
    table = Table("Reliability", ["what", "tries", "failures", "seconds to recover"])
    for name in options.rows.split(","):
        ROWS[name](table, options)
    table.show()


if __name__ == "__main__":
    main()
