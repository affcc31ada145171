"""What survives: kills, damage, two starters, garbage and power cuts, each row with its tries and failures.

    python benchmarks/bench_reliability.py --rows commit,damage,locks
    python benchmarks/bench_reliability.py --rows lives --kills 30 --steps sft,ppo

Rows: commit (strace), damage, locks, power (root and loop devices), garbage, lives, together (lives of two processes),
nodes (two machines of which one is lost; root); plain is a column, what a plain Trainer does in the same trouble. Each
writes its cells into reliability.md, and says so where it cannot run here.
Garbage and lives train the small recipe of tests/lives.py and compare with an undisturbed run, kept in --work.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import commits
import power_cuts
import races
from measure import about, quiet, short
from record import record

from rlhf.checkpoint import verify, working_folder
from rlhf.errors import MissingError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import lives
import nodes
import whole_steps

PLACES = 8
RACES = 100
CUTS = 20
COMMIT = "kill at every system call of a commit (3 saves, then an artefact over an old one), strace"
DAMAGE = "flip, truncate, zero, delete, swap: every file of a save"
LOCKS = "two starters on one run folder; the winner killed, and again"
POWER = "power cut at a random time of a commit (ext4, shut down without its log)"


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

    def cells(self) -> dict[str, str]:
        ordered = sorted(self.seconds)
        middle = f"{short(ordered[len(ordered) // 2])} (at most {short(ordered[-1])})" if ordered else ""
        return {"tries": str(self.tries), "failures": str(len(self.failures)), "seconds": middle}


# --- killed at every system call of a commit ---


def commit_row(options: argparse.Namespace) -> None:
    if shutil.which("strace") is None:
        record(COMMIT, tries="not run: no strace")
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
    record(COMMIT, **row.cells())


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


def damage_row(options: argparse.Namespace) -> None:
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
        for of in (newest, kept / "sft"):
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
            record(DAMAGE if of is newest else DAMAGE.replace("a save", "an artefact"), **row.cells())


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


def locks_row(options: argparse.Namespace) -> None:
    """The winner of each race is killed, so the next race starts on its lock."""
    row = Row()
    with tempfile.TemporaryDirectory() as name:
        for _ in range(RACES):
            row.tried(*races.race(Path(name)))
    record(LOCKS, **row.cells())


# --- power cuts ---


def power_row(options: argparse.Namespace) -> None:
    row, rng = Row(), random.Random(0)
    try:
        with power_cuts.disk() as disk:
            for number in range(CUTS):
                folder = disk.folder / f"try-{number}"
                commits.prepare(folder)
                os.sync()
                child, let_go, confirmed = commits.forked(folder, saves=rng.choice([3, 10**6]))
                os.write(let_go, b"!")
                os.close(let_go)
                time.sleep(rng.uniform(0.0, 0.5))
                disk.cut(child)
                row.tried(*commits.judged(folder, commits.said(confirmed)))
                shutil.rmtree(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        record(POWER, tries=f"not run: {error}")
        return
    record(POWER, **row.cells())


# --- whole steps, and what a plain Trainer does ---


def lives_row(options: argparse.Namespace) -> None:
    whole_steps.lives_row(options.steps.split(","), options.kills, options.work)


def together_row(options: argparse.Namespace) -> None:
    whole_steps.lives_row(options.steps.split(","), options.kills, options.work, processes=2)


def nodes_row(options: argparse.Namespace) -> None:
    """PPO and both reward models, five losses of either machine."""
    if nodes.possible():
        whole_steps.nodes_row(["reward-2", "ppo"], 5, options.work)
    else:
        print("nodes: not run, for it needs root and iproute2")


def garbage_row(options: argparse.Namespace) -> None:
    whole_steps.garbage_row(options.places.split(","), options.work)


def plain_row(options: argparse.Namespace) -> None:
    """One column: the plain Trainer in the same trouble."""
    import plain_trainer as plain

    work = options.work
    cells: dict[str, Callable[[], str]] = {
        COMMIT: lambda: plain.commit_cell(work, 60),
        DAMAGE: lambda: plain.damage_cell(work, damages),
        LOCKS: lambda: plain.locks_cell(work, 5),
        POWER: lambda: plain.power_cell(work, CUTS),
        whole_steps.killed("sft"): lambda: plain.lives_cell(work, options.kills),
    }
    cells |= {whole_steps.poisoned(place): partial(plain.garbage_cell, work, place) for place in plain.POISONS}
    for what, cell in cells.items():
        if not options.plain or any(word in what for word in options.plain.split(",")):
            record(what, plain=cell())


ROWS: dict[str, Callable[[argparse.Namespace], None]] = {
    "commit": commit_row,
    "damage": damage_row,
    "locks": locks_row,
    "power": power_row,
    "garbage": garbage_row,
    "lives": lives_row,
    "together": together_row,
    "nodes": nodes_row,
    "plain": plain_row,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--kills", type=int, default=30, help="kills a step")
    parser.add_argument("--steps", default=",".join(lives.KILLED), help="of lives and together")
    parser.add_argument("--places", default=",".join(whole_steps.PLACES), help="of garbage")
    parser.add_argument("--plain", default="", help="words of the rows that the plain Trainer shall fill; all without")
    parser.add_argument("--work", type=Path, default=Path("runs/reliability"), help="where the undisturbed run is kept")
    options = parser.parse_args()
    options.work = options.work.absolute()
    options.work.mkdir(parents=True, exist_ok=True)
    quiet()
    for name in options.rows.split(","):
        ROWS[name](options)
    print(about())


if __name__ == "__main__":
    main()
