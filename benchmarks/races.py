"""Two starters on one run folder, let go at the same moment."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from rlhf.checkpoint import locked
from rlhf.errors import LockedError


def race(run_dir: Path) -> tuple[str | None, float]:
    """What went wrong, or None, and the seconds until the loser knew who holds the folder."""
    gate, let_go = os.pipe()
    heard, tell = os.pipe()
    starters = [start(run_dir, gate, tell) for _ in range(2)]
    os.close(gate)
    os.close(tell)
    time.sleep(0.005)
    os.write(let_go, b"!!")
    os.close(let_go)
    lines = [b"", b""]
    with os.fdopen(heard, "rb") as file:
        lines = [file.readline(), file.readline()]
        for pid in starters:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    words = sorted(line.decode().split(" ", 3) for line in lines)  # "lost" before "won"
    if [word[0] for word in words] != ["lost", "won"]:
        return f"not one winner: {lines!r}", 0.0
    (_, _, seconds, who), (_, winner, *_) = words
    problem = None if f"process {winner} " in who else f"told {who.strip()}, held by {winner}"
    return problem or ("told after more than a second" if float(seconds) > 1 else None), float(seconds)


def start(run_dir: Path, gate: int, tell: int) -> int:
    child = os.fork()
    if child:
        return child
    os.read(gate, 1)
    began = time.perf_counter()
    try:
        with locked(run_dir):
            os.write(tell, f"won {os.getpid()} 0 -\n".encode())
            time.sleep(60)
    except LockedError as error:
        os.write(tell, f"lost {os.getpid()} {time.perf_counter() - began:.6f} {error.where}\n".encode())
        time.sleep(60)
    finally:
        os._exit(0)
