"""Frozen models that processes share: each keeps a part of one, and they put it together while it works.

Reference and reward models work once in an iteration. Put together once for it, they need no process to make as many
forward passes as the others, which parts that are gathered layer by layer would.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import distributed

from rlhf.processes import engine, team


def shared(model: Any) -> Any:
    """The model, cut in parts where the engine cuts models: used inside `whole(model)` only."""
    if engine.named() == engine.WHOLE or team.size() == 1:
        return model
    model.parts = []
    by_dtype = sorted(model.parameters(), key=lambda parameter: str(parameter.dtype))
    for _, group in groupby(by_dtype, key=lambda parameter: parameter.dtype):
        places = [(parameter, parameter.shape) for parameter in group]
        flat = torch.cat([parameter.data.flatten() for parameter, _ in places])
        flat = torch.nn.functional.pad(flat, (0, -len(flat) % team.size()))
        model.parts.append((flat.chunk(team.size())[team.rank()].clone(), places))
    _empty(model)
    return model


@contextmanager
def whole(model: Any) -> Iterator[None]:
    """Around the work of a model that may be shared; every process enters it."""
    for part, places in getattr(model, "parts", ()):
        flat = part.new_empty(len(part) * team.size())
        distributed.all_gather(list(flat.chunk(team.size())), part)
        lengths = [shape.numel() for _, shape in places]
        for (parameter, shape), values in zip(places, flat[: sum(lengths)].split(lengths), strict=True):
            parameter.data = values.view(shape)
    try:
        yield
    finally:
        _empty(model)


def _empty(model: Any) -> None:
    for part, places in getattr(model, "parts", ()):
        for parameter, _ in places:
            parameter.data = part.new_empty(0)
