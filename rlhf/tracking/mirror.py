"""A dashboard's copy of a step's files: whatever it does not have yet is read from them, line by line.

The files are what is restored when a killed step goes on; so the copy has every line once, whichever life wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlhf.reporting.text import redact

Row = Mapping[str, Any]


class Dashboard(Protocol):
    """Where a copy goes: W&B, TensorBoard, Trackio."""

    name: str

    def open(self) -> tuple[int, int]:
        """Begin, or go on with what a former life began: how many metrics and how many samples it has already."""

    def log(self, row: Row, *, number: int, samples: Sequence[Row]) -> None:
        """Take row `number`, counted from 1, of metrics.jsonl, and the samples that came with it."""

    def close(self, *, finished: bool) -> None:
        """The step has ended, or is left as it is."""


class Mirror:
    """Keeps one dashboard up with the files in `folder`; at its first fault it is left out, which is said."""

    def __init__(self, dashboard: Dashboard, folder: Path, step: str, *, say: Callable[[str], None]) -> None:
        self._dashboard, self._step, self._say = dashboard, step, say
        self._metrics, self._samples = Tail(folder / "metrics.jsonl"), Tail(folder / "samples.jsonl")
        self._open = self._lost = False

    def follow(self, now: Mapping[str, float]) -> None:
        """Send the new rows; `now` is what only the newest can say of itself, such as the memory it took."""
        if self._lost:
            return
        try:
            if not self._open:
                self._metrics.seen, self._samples.seen = self._dashboard.open()
                self._open = True
            rows, samples = self._metrics.read(), [row for _, row in self._samples.read()]
            for number, row in rows:
                newest = number == rows[-1][0]
                self._dashboard.log({**row, **now} if newest else row, number=number, samples=samples if newest else ())
        except Exception as error:  # whatever it raises, a dashboard must not stop a training run
            self._leave_out(error)

    def rewind(self) -> None:
        """The files were put back to what a save holds."""
        self._metrics.rewind()
        self._samples.rewind()

    def close(self, *, finished: bool) -> None:
        """Finish, if it was begun."""
        if self._open and not self._lost:
            try:
                self._dashboard.close(finished=finished)
            except Exception as error:
                self._leave_out(error)
        self._open = False

    def _leave_out(self, error: Exception) -> None:
        self._lost = True
        self._say(
            f"{self._dashboard.name} is left out of {self._step} ({first_line(error)}); the files have everything"
        )


class Tail:
    """The lines of a file that were not seen yet, by their number, which outlives the file's being put back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seen = 0
        self._at = self._line = 0

    def read(self) -> list[tuple[int, Row]]:
        """What has been written since: number, from 1, and row."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._at)
            lines = file.readlines()
            self._at = file.tell()
        first, self._line = self._line + 1, self._line + len(lines)
        new = [(number, line) for number, line in enumerate(lines, first) if number > self.seen]
        self.seen = max(self.seen, self._line)
        return [(number, json.loads(line)) for number, line in new]

    def rewind(self) -> None:
        """Count from the first line again."""
        self._at = self._line = 0


def listing(samples: Sequence[Row]) -> str:
    """Samples as Markdown that stays text, whatever was generated: one a line, indented as code."""
    return "\n".join("    " + json.dumps(sample, ensure_ascii=True) for sample in samples)


def first_line(error: Exception) -> str:
    """What went wrong, in one line without secrets."""
    return str(redact(str(error).strip().split("\n")[0])) or type(error).__name__
