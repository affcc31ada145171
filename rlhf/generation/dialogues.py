"""What a model has read of dialogues, so that of the next prompts of the same ones it reads the last turn alone.

Read anew at every turn, a dialogue of n turns costs about n / 2 times what its last prompt does. Here the keys and
values of the last batch of prompts are kept, and serve one whose prompts all begin with those. Answers are read again,
with the turn after them: what stood in the cache when they were drawn came of steps that a killed stage does not
repeat, while reading the same prompts in the same batches gives the same bits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from rlhf.generation.protocol import Request

Ids = tuple[int, ...]


class Dialogues:
    """Keys and values of the prompts that were read last, row by row, of a model whose weights do not change."""

    def __init__(self) -> None:
        self._unread: list[Request] = []  # since then, whose answers were known; the first is to be read first
        self._rows: dict[Ids, int] = {}
        self._layers: list[tuple[Tensor, Tensor]] = []  # each [rows, key heads, slots, width]
        self._seen = torch.zeros(0, 0)  # [rows, slots], 1 where there is a token

    def skip(self, request: Request) -> None:
        """This one need not be answered; those that go on from it will be."""
        self._begin(request)
        self._unread.append(request)

    def before(self, request: Request) -> list[Request]:
        """What has to be read first, for this one to be read as if nothing had been skipped."""
        self._begin(request)
        unread, self._unread = self._unread, []
        return unread

    def _begin(self, request: Request) -> None:
        """Drop everything unless this goes on from what was asked last."""
        last: Collection[Ids] = {tuple(ids) for ids in self._unread[-1].prompts} if self._unread else self._rows
        if _begun(request.prompts, last) is None:
            self._unread = []
            self.forget()

    def recall(self, prompts: Sequence[Sequence[int]]) -> tuple[DynamicCache, Tensor] | None:
        """A cache of what was read of these, padded on the left, and which of its slots [rows, slots] hold a token.

        None unless something has of all of them. It is handed over, layer by layer: nothing is held here any more.
        """
        begun, known, layers = _begun(prompts, self._rows), self._rows, self._layers
        self.forget()
        if begun is None:
            return None
        rows = torch.tensor([known[ids] for ids in begun], device=self._seen.device)
        seen = self._seen[rows]
        order = seen.argsort(dim=-1, stable=True)[:, -max(map(len, begun)) :]  # empty slots first, then tokens in order
        cache = DynamicCache()
        for i in range(len(layers)):
            keys, values = layers.pop(0)
            cache.update(*(states[rows].take_along_dim(order[:, None, :, None], 2) for states in (keys, values)), i)
        return cache, seen.gather(1, order)

    def keep(self, prompts: Sequence[Sequence[int]], cache: DynamicCache, seen: Tensor) -> None:
        """Hold what was read of these, instead of what was held before."""
        self._rows = {tuple(prompt): row for row, prompt in enumerate(prompts)}
        self._layers = [(layer.keys, layer.values) for layer in cache.layers]
        self._seen = seen

    def forget(self) -> None:
        """Nothing is held any more: the memory is free for what is read next."""
        self._rows, self._layers = {}, []


def _begun(prompts: Sequence[Sequence[int]], known: Collection[Ids]) -> list[Ids] | None:
    """The longest of the known that each prompt goes on from."""
    lengths = sorted({len(ids) for ids in known}, reverse=True)
    found = [
        next((ids for n in lengths if n < len(prompt) and (ids := tuple(prompt[:n])) in known), None)
        for prompt in prompts
    ]
    return None if None in found or not found else found  # type: ignore[return-value]
