"""Scores: one number per completion, read at one place.

A reward model writes a value at every token; the score is the value at the last token that exists, which is the EOS
of a finished completion. Training, evaluation, rejection sampling, PPO and the critic all come through here, so a
score cannot depend on its pair, its batch or its padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.finite import require_finite
from rlhf.models import packing
from rlhf.models.branches import Tree, ends, lay_out, trees, visible, work_of
from rlhf.models.packing import sees_all
from rlhf.models.shared import whole
from rlhf.processes.ranks import dealt

AT_ONCE, AT_ONCE_ON_CPU = 8192, 2048
"""Tokens that are scored together. A CPU is fastest where what it makes of them stays in its caches."""


def token_values(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None
) -> Tensor:
    """The scalar head at every token: [B, S], in logits. The critic's values are these.

    The mask is [B, S], what exists, or [B, 1, S, S], who sees whom; the latter needs positions, too.
    """
    if position_ids is None:
        hidden = packing.states(model.base_model, input_ids, attention_mask)
    else:
        seen = {"attention_mask": attention_mask, "position_ids": position_ids}
        hidden = model.base_model(input_ids=input_ids, **seen, use_cache=False).last_hidden_state
    values: Tensor = model.score(hidden.to(model.score.weight.dtype))  # an adapter's head is float32 over any body
    return values.squeeze(-1).float()


@contextmanager
def called_as(model: PreTrainedModel, function: Callable[..., Any]) -> Iterator[None]:
    """Inside, calling the model is `function(model, ...)`: an engine that wraps a model sees only what calls it."""
    model.forward = partial(function, model)
    try:
        yield
    finally:
        del model.forward


def read_score(values: Tensor, attention_mask: Tensor) -> Tensor:
    """The value at each row's last token that exists: [B, S] -> [B]. Rows are padded on the right."""
    last = attention_mask.long().sum(-1) - 1
    return values.gather(1, last[:, None]).squeeze(1)


def pad_right(rows: Sequence[Sequence[int]], *, pad_token_id: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Rows of ids to input_ids [B, S] and attention_mask [B, S]."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids.to(device), mask.to(device)


def batches_by_length(lengths: Sequence[int], *, tokens: int) -> list[list[int]]:
    """Indices in batches of at most `tokens` tokens, padding included, of rows of similar length."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def planned(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], tokens_per_batch: int | None = None
) -> list[list[Tree]]:
    """Batches of sorted, different rows: of trees, where that is less work, and of rows by themselves."""
    on_cpu = model.device.type == "cpu"
    size = tokens_per_batch or (AT_ONCE_ON_CPU if on_cpu else AT_ONCE)
    alone = [Tree(i, i + 1, 0, len(row)) for i, row in enumerate(rows)]
    found = trees(rows, work_of(model), longest=size) if on_cpu and sees_all(model) else alone
    kinds = [tree for tree in found if tree.trunk], [tree for tree in found if not tree.trunk]
    return [
        [kind[i] for i in batch]
        for kind in kinds
        for batch in batches_by_length([tree.tokens for tree in kind], tokens=size)
    ]


def read_scores(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], batch: Sequence[Tree], *, pad_token_id: int
) -> Tensor:
    """The scores [N] of the rows of these trees, which all have a trunk, or none has."""
    if not batch[0].trunk:
        ids, mask = pad_right([rows[tree.first] for tree in batch], pad_token_id=pad_token_id, device=model.device)
        return read_score(token_values(model, ids, mask), mask)
    found = lay_out([(tree.trunk, rows[tree.first : tree.last]) for tree in batch], pad_token_id=pad_token_id)
    ids, positions, segments = (found[name].to(model.device) for name in ("input_ids", "position_ids", "segments"))
    values = token_values(model, ids, visible(segments)[:, None], position_ids=positions)
    return values[ends(segments)]


@torch.no_grad()
def score(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    *,
    pad_token_id: int,
    tokens_per_batch: int | None = None,
    what: str = "a score",
) -> Tensor:
    """Score whole dialogues (prompt and completion ids): [N] logits, in the order given.

    Equal rows are scored once; rows of similar length share a batch. On a CPU what rows begin with in common is read
    once where that is less work (on a GPU, whose fast attention takes no mask, nobody has measured it). Several
    processes share the batches.

    Raises:
        NonFiniteError: a score, called `what`, is no finite number; rows are named by their place.
    """
    model.eval()
    unique = sorted({tuple(row) for row in rows})

    def read(share: Sequence[Sequence[Tree]]) -> list[list[float]]:
        return [read_scores(model, unique, batch, pad_token_id=pad_token_id).tolist() for batch in share]

    with whole(model):  # of which the weights are counted, too
        batches = planned(model, unique, tokens_per_batch)
        scored = dealt(batches, read, cost=lambda batch: sum(tree.tokens for tree in batch))
    known: dict[tuple[int, ...], float] = {}
    for batch, scores in zip(batches, scored, strict=True):
        known.update(zip((row for tree in batch for row in unique[tree.first : tree.last]), scores, strict=True))
    made = torch.tensor([known[tuple(row)] for row in rows], dtype=torch.float32)
    if not bool(torch.isfinite(made).all()):
        ids, mask = pad_right(rows, pad_token_id=pad_token_id, device="cpu")
        names = [str(i) for i in range(len(rows))]
        require_finite(made, what, ids=names, input_ids=ids, attention_mask=mask)
    return made
