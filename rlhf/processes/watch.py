"""Who does not come, does not answer or does not move, while several processes work on a stage. Torch-free.

Every process writes its pulse to `logs/` of the run, from a thread, with the stack of its main thread; every process
reads the others', and the first that is well speaks. Nothing here ends a process: the group's own timeout does.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from rlhf.processes import team

EVERY, PATIENCE = 5.0, 60.0
"""Seconds between pulses, and without one, or without a move of anybody, before it is said."""
FRAMES = 4
"""Innermost frames that a pulse carries."""


@contextmanager
def over(stage: str, run_dir: Path, *, every: float = EVERY, patience: float = PATIENCE) -> Iterator[None]:
    """Watch over a stage; nothing where one process works alone."""
    if team.size() == 1:
        yield
        return
    folder = run_dir / "logs"
    folder.mkdir(exist_ok=True)
    watch, ended = Watch(stage, folder, patience), threading.Event()
    watch.beat()

    def beats() -> None:
        while not ended.wait(every):
            with suppress(OSError):
                watch.beat()
                watch.look()

    thread = threading.Thread(target=beats, daemon=True, name="watch")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        watch.own.unlink(missing_ok=True)


class Watch:
    """One process's view of all. Clocks of machines differ, so only changes are timed, by the own clock."""

    def __init__(self, stage: str, folder: Path, patience: float, say: Callable[[str], None] | None = None) -> None:
        self.stage, self.folder, self.patience = stage, folder, patience
        self.say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self.own = self._file(team.rank())
        self.main = threading.main_thread().ident
        self.began = self.moved = time.monotonic()
        self.place: list[tuple[int, int]] = []
        self.beats, self.alarmed = 0, False
        self.read = {other: (self._pulse(other), self.began) for other in range(team.size()) if other != team.rank()}
        self.seen: set[int] = set()

    def beat(self) -> None:
        """Write the own pulse: that this process lives, where its main thread is, and since when."""
        frame = sys._current_frames().get(self.main or 0)
        place = _place(frame)
        if place != self.place:
            self.place, self.moved = place, time.monotonic()
        self.beats += 1
        pulse = {
            "beat": f"{os.getpid()}/{self.beats}",
            "host": socket.gethostname(),
            "still": time.monotonic() - self.moved,
            "stack": [line.rstrip() for line in traceback.format_stack(frame)[-FRAMES:]] if frame else [],
        }
        fresh = self.own.with_suffix(".new")
        fresh.write_text(json.dumps(pulse), encoding="utf-8")
        os.replace(fresh, self.own)

    def look(self) -> None:
        """Read the pulses of the others, and say once who is missing, or where all stand if nobody moves."""
        now, working, lost = time.monotonic(), [], []
        for other, (before, since) in self.read.items():
            pulse = self._pulse(other)
            if pulse == before:
                done = pulse is None and other in self.seen
                if not done and now - since >= self.patience:
                    lost.append(other)
                elif pulse is not None:
                    working.append(pulse["still"])
                continue
            self.read[other] = (pulse, now)
            if pulse is not None:
                self.seen.add(other)
                working.append(pulse["still"])
        stuck = min([now - self.moved, *working]) >= self.patience
        if not (lost or stuck):
            self.alarmed = False
        elif not self.alarmed:
            self.alarmed = True
            self._alarm(lost)

    def _alarm(self, lost: list[int]) -> None:
        """Leave all stacks of this process in its log; the first process that is well says what is known of all."""
        with (self.folder / f"rank-{team.rank()}.stack").open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        if team.rank() > min(set(range(team.size())) - set(lost)):
            return
        if not lost:
            self.say(f"{self.stage}: every process has been where it is for {self.patience:.0f} s")
        for other in lost or sorted([*self.read, team.rank()]):
            pulse = self._pulse(other)
            if other in lost:
                what = "does not answer" if other in self.seen else "has not come"
                self.say(f"{self.stage}: process {other}{_on(pulse)} {what} for {self.patience:.0f} s")
            elif pulse is not None:
                self.say(f"process {other}{_on(pulse)} waits here:")
            for line in pulse["stack"] if pulse else ():
                self.say(line)
        self.say(f"all threads of those that answer: {self.folder}/rank-*.stack")

    def _file(self, rank: int) -> Path:
        return self.folder / f"{self.stage}.rank-{rank}.pulse"

    def _pulse(self, rank: int) -> dict[str, Any] | None:
        with suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads(self._file(rank).read_text(encoding="utf-8"))
            return found
        return None


def _on(pulse: dict[str, Any] | None) -> str:
    return f" on {pulse['host']}" if pulse else ""


def _place(frame: FrameType | None) -> list[tuple[int, int]]:
    """Where a thread is, to the instruction: equal places at every pulse mean that it waits there, or that one long
    call after the other is made there, so this says where to look and ends nothing."""
    found = []
    while frame is not None:
        found.append((id(frame), frame.f_lasti))
        frame = frame.f_back
    return found
