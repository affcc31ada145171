"""Trackio: a local project of the run, its steps written anew from their files by every life. Its one door."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from rlhf.errors import ConfigError, MissingError
from rlhf.tracking.histogram import edges
from rlhf.tracking.mirror import listing

ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class TrackioRun:
    """A project in `<run folder>/trackio`; each step is a run of it."""

    name = "trackio"

    def __init__(self, run_folder: Path, run: str, step: str) -> None:
        self._folder, self._project, self._step = (run_folder / "trackio").resolve(), run, step
        self._trackio: Any = None

    def open(self) -> tuple[int, int]:
        if given := [name for name in ELSEWHERE if os.environ.get(name)]:
            raise ConfigError(f"{given[0]} is set, and only the run's folder is written to")
        os.environ["TRACKIO_DIR"] = str(self._folder)  # read when it is imported
        try:
            import trackio
        except ImportError:
            raise MissingError("not installed: pip install 'rlhf[trackio]'") from None
        if self._folder != trackio.utils.TRACKIO_DIR:
            raise ConfigError(f"this process writes to {trackio.utils.TRACKIO_DIR} already")
        self._trackio = trackio
        with redirect_stdout(io.StringIO()):  # it greets
            self._forget()
            trackio.init(self._project, name=self._step, embed=False, auto_log_cpu=False, auto_log_gpu=False)
        return 0, 0

    def _forget(self) -> None:
        """What a former life wrote of this step."""
        try:
            runs = list(self._trackio.Api().runs(self._project))
        except ValueError:  # no such project yet
            return
        for run in runs:
            if run.name == self._step:
                run.delete()

    def log(self, row: Mapping[str, Any], *, number: int, samples: Sequence[Mapping[str, Any]]) -> None:
        values = {name: self._told(value) for name, value in row.items() if name not in ("step", "time")}
        if samples:
            values["samples"] = self._trackio.Markdown(listing(samples))
        self._trackio.log(values, step=int(row["step"]))

    def _told(self, value: Any) -> Any:
        """A number as it is, counted bins as a histogram."""
        if isinstance(value, Mapping):
            return self._trackio.Histogram(np_histogram=(value["counts"], edges(value)))
        return value

    def close(self, *, finished: bool) -> None:
        with redirect_stdout(io.StringIO()):
            self._trackio.finish()
