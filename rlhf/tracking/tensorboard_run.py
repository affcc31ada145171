"""TensorBoard: one folder for every step, written anew from its files by every life. The one door to TensorBoard."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.errors import MissingError
from rlhf.tracking.histogram import edges
from rlhf.tracking.mirror import listing

FLUSH_SECONDS = 10


class TensorBoardRun:
    """Event files in `<run folder>/tensorboard/<step>`."""

    name = "tensorboard"

    def __init__(self, run_folder: Path, step: str) -> None:
        self._folder = run_folder / "tensorboard" / step
        self._writer: Any = None

    def open(self) -> tuple[int, int]:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingError("not installed: pip install 'rlhf[tensorboard]'") from None
        shutil.rmtree(self._folder, ignore_errors=True)
        self._writer = SummaryWriter(str(self._folder), flush_secs=FLUSH_SECONDS)
        return 0, 0

    def log(self, row: Mapping[str, Any], *, number: int, samples: Sequence[Mapping[str, Any]]) -> None:
        step = int(row["step"])
        for name, value in row.items():
            if isinstance(value, Mapping):
                self._histogram(name, value, step)
            elif name != "step":
                self._writer.add_scalar(name, value, step)
        if samples:
            self._writer.add_text("samples", listing(samples), step)

    def _histogram(self, name: str, entry: Mapping[str, Any], step: int) -> None:
        counts, bounds = entry["counts"], edges(entry)
        # TensorBoard asks for the sums of the values, of which the bins have kept the middle.
        middles = [(low + high) / 2 for low, high in itertools.pairwise(bounds)]
        self._writer.add_histogram_raw(
            name,
            min=entry["low"],
            max=entry["high"],
            num=sum(counts),
            sum=sum(n * x for n, x in zip(counts, middles, strict=True)),
            sum_squares=sum(n * x * x for n, x in zip(counts, middles, strict=True)),
            bucket_limits=bounds[1:],
            bucket_counts=counts,
            global_step=step,
        )

    def close(self, *, finished: bool) -> None:
        self._writer.close()
