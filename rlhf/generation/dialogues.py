"""What a model has read of dialogues, so that of the next prompts of the same ones it reads the last turn alone.

Read anew at every turn, a dialogue of n turns costs n times what its last prompt does. Here the keys and values of the
last batch of prompts are kept, and serve one whose prompts all begin with those. Answers are read again, with the turn
after them: what stood in the cache when they were drawn came of steps that a killed stage does not repeat, while
reading the same prompts in the same batches gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from rlhf.generation.protocol import Request

Ids = tuple[int, ...]


class Dialogues:
    """Keys and values of the prompts that were read last, row by row, of a model whose weights do not change."""

    def __init__(self) -> None:
        self.unread: list[Request] = []
        """Requests since then whose answers were known, the first to be read first."""
        self._rows: dict[Ids, int] = {}
        self._layers: list[tuple[Tensor, Tensor]] = []  # each [rows, key heads, slots, width]
        self._seen = torch.zeros(0, 0)  # [rows, slots], 1 where there is a token

    def begun(self, prompts: Sequence[Sequence[int]]) -> list[Ids] | None:
        """What has been read of each of these prompts; None unless something has of all of them."""
        return _begun(prompts, self._rows)

    def skip(self, request: Request) -> None:
        """This one need not be answered; those that go on from it will be."""
        after = self.unread[-1].prompts if self.unread else self._rows
        if _begun(request.prompts, {tuple(prompt): 0 for prompt in after}) is None:
            self.unread = []
            self.forget()
        self.unread.append(request)

    def recall(self, begun: Sequence[Ids]) -> tuple[DynamicCache, Tensor]:
        """A cache that holds these, padded on the left, and which of its slots [rows, slots] hold a token.

        It is handed over, layer by layer: nothing is held here any more.
        """
        rows = torch.tensor([self._rows[ids] for ids in begun], device=self._seen.device)
        seen = self._seen[rows]
        order = seen.argsort(dim=-1, stable=True)[:, -max(map(len, begun)) :]  # empty slots first, then tokens in order
        cache, layers = DynamicCache(), self._layers
        self.forget()
        for i in range(len(layers)):
            keys, values = layers.pop(0)
            place = order[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
            cache.update(*(states[rows].gather(2, place) for states in (keys, values)), i)
        return cache, seen.gather(1, order)

    def keep(self, prompts: Sequence[Sequence[int]], cache: DynamicCache, seen: Tensor) -> None:
        """Hold what was read of these, instead of what was held before."""
        self._rows = {tuple(prompt): row for row, prompt in enumerate(prompts)}
        self._layers = [(layer.keys, layer.values) for layer in cache.layers]
        self._seen = seen

    def forget(self) -> None:
        """Nothing is held any more: the memory is free for what is read next."""
        self._rows, self._layers = {}, []


def _begun(prompts: Sequence[Sequence[int]], known: dict[Ids, int]) -> list[Ids] | None:
    """The longest of the known that each prompt goes on from."""
    lengths = sorted({len(ids) for ids in known}, reverse=True)
    found = [
        next((ids for n in lengths if n < len(prompt) and (ids := tuple(prompt[:n])) in known), None)
        for prompt in prompts
    ]
    return None if None in found or not found else found  # type: ignore[return-value]
