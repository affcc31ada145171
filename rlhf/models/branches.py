"""Rows that begin alike as one row: what they begin with is read once, and each goes on from it as a branch.

    three rows   trunk a a a              one row   trunk a a a b b c c c c
                 trunk b b
                 trunk c c c c

A branch sees the trunk and itself, and its positions go on from the trunk's; so a causal model finds in it what it
finds in the row by itself. K answers to a prompt are such rows, and so are the two sides of a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from transformers import PreTrainedModel

Ids = Sequence[int]
TRUNK, PADDING = 0, -1
"""Segments of a row; its branches are 1, 2, 3, ..."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The rows [first, last) of a sorted list, as a trunk of so many ids and a branch for each; its own ids in all."""

    first: int
    last: int
    trunk: int
    tokens: int


def shared_prefix(a: Ids, b: Ids) -> int:
    """How many ids two rows begin with in common; each keeps one of its own at least, where its score is read."""
    most = min(len(a), len(b)) - 1
    return next((i for i in range(most) if a[i] != b[i]), most)


def work_of(model: PreTrainedModel) -> Callable[[int], int]:
    """The multiplications of a row of so many tokens: each passes every weight, and meets every key of its row."""
    config = model.config
    sizes = {name: getattr(p, "ds_numel", p.numel()) for name, p in model.named_parameters()}  # zero3 holds parts
    per_token = sum(size for name, size in sizes.items() if "embed_tokens" not in name)
    per_key = 2 * config.num_hidden_layers * config.hidden_size
    return lambda tokens: tokens * (per_token + tokens * per_key)


def trees(rows: Sequence[Ids], work: Callable[[int], int], *, longest: int) -> list[Tree]:
    """Sorted, different rows as those trees that are least work; one of several rows has `longest` ids at most.

    Rows that begin alike stand side by side. Stretches of rows that have ever more in common lie within one another:
    each is a tree, or the best of every stretch inside it. One that is too long is not cut into pieces of its own.
    """
    before = [0, *accumulate(map(len, rows))]
    open_: list[tuple[int, list[Tree], int]] = []  # stretches that may go on, each inside the one before it
    for i, row in enumerate(rows):
        made, cost = [Tree(i, i + 1, 0, len(row))], work(len(row))
        shared = shared_prefix(row, rows[i + 1]) if i + 1 < len(rows) else -1
        while open_ and open_[-1][0] >= shared:
            trunk, inside, spent = open_.pop()
            inside.extend(made)
            made, cost = inside, spent + cost
            if trunk == shared:
                break
            first, last = made[0].first, made[-1].last
            tokens = before[last] - before[first] - (last - first - 1) * trunk
            if tokens <= longest and (together := work(tokens)) < cost:
                made, cost = [Tree(first, last, trunk, tokens)], together
        open_.append((shared, made, cost))
    return open_[0][1] if open_ else []


def lay_out(found: Sequence[tuple[int, Sequence[Ids]]], *, pad_token_id: int) -> dict[str, Tensor]:
    """Trees, each as the length of its trunk and its rows: ids, positions and segments, [B, S] each, padded."""
    width = max(trunk + sum(len(row) - trunk for row in rows) for trunk, rows in found)
    ids = torch.full((len(found), width), pad_token_id, dtype=torch.long)
    positions, segments = torch.zeros_like(ids), torch.full_like(ids, PADDING)
    for i, (trunk, rows) in enumerate(found):
        begun = [*rows[0][:trunk]], [*range(trunk)], [TRUNK] * trunk
        for branch, row in enumerate(rows, start=1):
            own = row[trunk:], range(trunk, len(row)), [branch] * (len(row) - trunk)
            for so_far, more in zip(begun, own, strict=True):
                so_far.extend(more)
        for made, values in zip((ids, positions, segments), begun, strict=True):
            made[i, : len(values)] = torch.tensor(values)
    return {"input_ids": ids, "position_ids": positions, "segments": segments}


def visible(segments: Tensor) -> Tensor:
    """Who sees whom: [B, S] -> [B, S, S]. A token sees the trunk and its own branch, as far as they came before it."""
    query, key = segments[:, :, None], segments[:, None, :]
    return ((key == query) | (key == TRUNK)).tril()


def ends(segments: Tensor) -> Tensor:
    """Where branches end: [B, S], row by row in the order of their branches."""
    after = torch.nn.functional.pad(segments, (0, 1), value=PADDING)[:, 1:]
    return (segments > TRUNK) & (after != segments)
