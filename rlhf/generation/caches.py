"""Keys and values of rows that are decoded together, in memory taken once; finished rows leave it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicLayer


class RowCache(DynamicLayer):
    """Keys and values of one layer, [rows, heads, capacity, width], written in place."""

    def __init__(self, keys: Tensor, values: Tensor, *, seen: Tensor, copies: int, room: int) -> None:
        super().__init__()
        self.length = keys.shape[-2]
        self.buffers = [_widened(x, copies=copies, room=room) for x in (keys, values)]
        self.is_initialized = True
        self._show()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        new = self.length + key_states.shape[-2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : new] = states
        self.length = new
        return self._show()

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """What each row's query [rows, heads, 1, width] finds, after its key and value are written."""
        many = queries.shape[1] != keys.shape[1]
        return F.scaled_dot_product_attention(
            queries,
            *self.update(keys, values),
            attn_mask=None if mask is None else mask[:, None, None].bool(),
            enable_gqa=many,
        )

    def shrink(self, holes: Tensor, movers: Tensor, rows: int) -> None:
        """Keep `rows` rows: those at `movers`, beyond them, take the places of those at `holes`. No other row moves."""
        for buffer in self.buffers:
            buffer[holes, :, : self.length] = buffer[movers, :, : self.length]
        self.buffers = [buffer[:rows] for buffer in self.buffers]
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)
        return self.keys, self.values


class SharedPrompts:
    """The same for K rows a prompt, whose keys and values are kept and read once for all of them.

    A step of many rows mostly waits for what it reads, and of that the prompts are the larger part.
    """

    def __init__(self, keys: Tensor, values: Tensor, *, seen: Tensor, copies: int, room: int) -> None:
        self.keys, self.values, self.copies = keys, values, copies  # [prompts, key heads, length, width]
        self.hidden = torch.zeros(seen.shape, device=keys.device).masked_fill(seen == 0, float("-inf"))[:, None, None]
        self.own = RowCache(keys[:, :, :0], values[:, :, :0], seen=seen, copies=copies, room=room)
        self.slots = torch.arange(len(keys) * copies, device=keys.device)  # of each row: prompt * copies + k

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """One softmax over the prompt's keys and the row's own; the mask is known already."""
        own_keys, own_values = self.own.update(keys, values)
        rows, key_heads, _, width = keys.shape
        asked = queries.reshape(rows, key_heads, -1, width) * width**-0.5
        scores = self._by_row(self._by_prompt(asked) @ self.keys.mT + self.hidden)
        weights = torch.cat((scores, asked @ own_keys.mT), -1).softmax(-1)
        length = self.keys.shape[2]
        found = self._by_row(self._by_prompt(weights[..., :length]) @ self.values)
        return (found + weights[..., length:] @ own_values).reshape(queries.shape)

    def shrink(self, holes: Tensor, movers: Tensor, rows: int) -> None:
        """As RowCache does; prompts without a row leave when they are half of all."""
        self.own.shrink(holes, movers, rows)
        self.slots = self.slots.index_copy(0, holes, self.slots[movers])[:rows]
        live, place = torch.unique(self.slots // self.copies, return_inverse=True)
        if 2 * len(live) <= len(self.keys):
            self.keys, self.values, self.hidden = self.keys[live], self.values[live], self.hidden[live]
            self.slots = place * self.copies + self.slots % self.copies

    def _by_prompt(self, x: Tensor) -> Tensor:
        """[rows, key heads, n, m] -> [prompts, key heads, copies * n, m], zero for rows that have left."""
        whole = x.new_zeros(len(self.keys) * self.copies, *x.shape[1:]).index_copy(0, self.slots, x)
        return whole.view(-1, self.copies, *x.shape[1:]).transpose(1, 2).flatten(2, 3)

    def _by_row(self, x: Tensor) -> Tensor:
        """The way back."""
        whole = x.reshape(*x.shape[:2], self.copies, -1, x.shape[-1]).transpose(1, 2).flatten(0, 1)
        return whole[self.slots]


def _widened(states: Tensor, *, copies: int, room: int) -> Tensor:
    """[P, heads, length, width] -> [P * copies, heads, length + room, width], the new slots empty."""
    rows, heads, length, width = states.shape
    out = states.new_empty(rows, copies, heads, length + room, width)
    out[:, :, :, :length] = states[:, None]
    return out.flatten(0, 1)
