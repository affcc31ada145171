"""The order in which rows are gone through: similar lengths together, and as many batches for every process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from rlhf.processes import team


class SimilarLengths(Sampler[int]):
    """Rows of similar length share a batch, so that little is padding; the batches come in random order.

    The Trainer's own grouping leaves them sorted from long to short, a sweep over length while the learning rate falls.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = torch.tensor(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called before every pass: the order is of the pass, whichever passes this process has made."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed + self.epoch)
        batches: list[Tensor] = []
        for part in torch.split(torch.randperm(len(self), generator=draw), 50 * self.batch_size):
            longest_first = part[self.lengths[part].argsort(descending=True, stable=True)]
            batches += torch.split(longest_first, self.batch_size)
        last = batches.pop()  # it may be a short one, which would shift those after it
        for i in torch.randperm(len(batches), generator=draw).tolist():
            yield from batches[i].tolist()
        yield from last.tolist()


class Filled(Sampler[int]):
    """A sampler's rows, then fillers; a filler is the row after the last one, and has no part in the loss.

    It asks for the `epoch` itself: what skips the first batches of a resumed one lets nobody tell the sampler.
    """

    def __init__(self, rows: Any, *, multiple: int, epoch: Callable[[], int]) -> None:
        self.rows, self.multiple, self.epoch = rows, multiple, epoch

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        self.rows.set_epoch(self.epoch())
        yield from self.rows
        yield from [len(self.rows)] * (len(self) - len(self.rows))


def filled(rows: Any, *, multiple: int, epoch: Callable[[], int]) -> Any:
    """The sampler as it is on one process; on several with fillers up to a multiple of what they do at once."""
    return rows if team.size() == 1 else Filled(rows, multiple=multiple, epoch=epoch)
