"""A writer of saves and of an artefact, to be killed anywhere, and a judge of what it left."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from rlhf.checkpoint import open_artefact, recover, verify, working_folder
from rlhf.errors import MissingError
from rlhf.resume.preemption import Stop
from rlhf.resume.saves import Save, Saves
from rlhf.tracking.track import Tracker


def opened(out: Path, note: Callable[..., None] = lambda event, **more: None) -> Saves:
    """The saves of a step as a new life finds them."""
    track = Tracker(out, run="test", step="sft", console=Console(file=io.StringIO(), width=300))
    return Saves(out, key="key", track=track, every=0.0, stop=Stop(), note=note)


def prepare(folder: Path) -> None:
    """The artefact that the writer replaces."""
    with open_artefact(folder / "sft", {"version": "old"}) as out:
        (out / "text").write_text("old", encoding="utf-8")


def commit(folder: Path, confirm: Callable[[str], object], saves: int) -> None:
    """Make so many saves, then the artefact; `confirm` is told of each once it is promised to last."""
    with open_artefact(folder / "sft", {"version": "new"}) as out:
        (out / "text").write_text("new", encoding="utf-8")
        writer = opened(out)
        for number in range(1, saves + 1):
            writer.track.log({"loss": float(number)}, step=number)
            writer.write("loop", {"number": number, "weight": torch.full((1000,), float(number))})
            confirm(f"{number}\n")
        writer.track.close()
    confirm("artefact\n")


def forked(folder: Path, saves: int) -> tuple[int, int, int]:
    """A child that commits once it is let go: its pid, the pipe that lets it go, the pipe of what it confirms."""
    gate, let_go = os.pipe()
    confirmed, confirm = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(confirmed)
        os.read(gate, 1)
        code = 1
        try:
            commit(folder, lambda line: os.write(confirm, line.encode()), saves)
            code = 0
        finally:
            os._exit(code)
    os.close(gate)
    os.close(confirm)
    return child, let_go, confirmed


def said(confirmed: int) -> list[str]:
    """What a child that is over has confirmed."""
    with os.fdopen(confirmed) as file:
        return file.read().split()


def judged(folder: Path, confirmed: Sequence[str]) -> tuple[str | None, float]:
    """What is wrong with what a killed writer left, or None; and the seconds it took to find what to go on from."""
    began = time.perf_counter()
    damaged: list[str] = []
    try:
        recover(folder)
        version = verify(folder / "sft")["version"]
    except MissingError as error:
        return f"half an artefact: {error.what}", 0.0
    save = None
    out = working_folder(folder / "sft")
    if version == "old" and out.exists():
        reader = opened(out, lambda event, **more: damaged.append(event) if event == "damaged save" else None)
        save = reader.begin("loop")
        reader.track.close()
    seconds = time.perf_counter() - began
    if (folder / "sft" / "text").read_text(encoding="utf-8") != version:
        return "an artefact of two halves", seconds
    if version == "new":
        return None, seconds
    if "artefact" in confirmed:
        return "a confirmed artefact is lost", seconds
    if damaged:
        return "a half-written save had its name", seconds
    return _wrong(save, out, max([0, *map(int, confirmed)])), seconds


def _wrong(save: Save | None, out: Path, last: int) -> str | None:
    """Whether a save is older than the last that was confirmed, or is not what was written under its number."""
    if (save.number if save else 0) < last:
        return f"save {last} was confirmed and is lost"
    if save is None:
        return None
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    state = save.state()
    whole = state["number"] == save.number and bool((state["weight"] == save.number).all())
    return None if whole and len(lines) == save.number else f"save {save.number} is not what was written"
