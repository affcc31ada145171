"""What a step cost, and what it ran on: seconds, memory, versions, commit; and the journal of a run. Torch-free."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from rlhf import __version__
from rlhf.checkpoint import now
from rlhf.disk import append_line

LIBRARIES = ("torch", "transformers", "trl", "accelerate", "peft", "tokenizers", "safetensors", "numpy")


class Meter:
    """Counts from its making: wall-clock seconds, processor seconds (children included), peak memory."""

    def __init__(self) -> None:
        with suppress(OSError):  # Linux: start the peak anew; elsewhere it is that of the process so far
            Path("/proc/self/clear_refs").write_text("5")
        self._began, self._cpu = time.perf_counter(), _cpu_seconds()

    def figures(self) -> dict[str, float]:
        """The counts so far, as a manifest keeps them."""
        return {
            "seconds": round(time.perf_counter() - self._began, 3),
            "cpu_seconds": round(_cpu_seconds() - self._cpu, 3),
            "peak_rss_mb": round(peak_rss_mb(), 1),
        }


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def peak_rss_mb() -> float:
    """The most memory this process has held, in MB."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    unit = 1024**2 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@cache
def versions() -> dict[str, str]:
    """Versions of Python, of ours, and of the libraries whose numbers ours depend on."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "rlhf": __version__}
    for library in LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[library] = importlib.metadata.version(library)
    return found


@cache
def git_commit() -> str | None:
    """The commit of the checkout this package runs from, with `+` if files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        asked = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--match=", "--dirty=+"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


class Journal:
    """runs/RUN/events.jsonl: what happened to which step, one line each, only ever added to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, step: str, **more: Any) -> None:
        """Add a line in one write and make it durable."""
        line = json.dumps({"time": now(), "event": event, "step": step, "pid": os.getpid(), **more}) + "\n"
        with self.path.open("ab", buffering=0) as file:
            if self._is_torn():
                line = "\n" + line  # a line that a power cut broke off must not swallow this one
            append_line(file, line.encode(), self.path)
            os.fsync(file.fileno())

    def last(self) -> dict[str, dict[str, Any]]:
        """The last event of every step; lines that do not parse are passed over."""
        found: dict[str, dict[str, Any]] = {}
        with suppress(OSError):
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError, KeyError, TypeError):
                    event = json.loads(line)
                    if event["event"] != "skip":
                        found[event["step"]] = event
        return found

    def _is_torn(self) -> bool:
        with self.path.open("rb") as file:
            if not file.seek(0, os.SEEK_END):
                return False
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"
