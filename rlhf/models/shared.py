"""Models that processes share: each keeps a part of one, and they put it together while it works.

A model works a few times in an iteration: it answers, scores or gets its gradients. Put together once for each, it
needs no process to make as many forward passes as the others, which parts that are gathered layer by layer would. At
rest a process holds its part of the weights and, of one that learns, steps on that part alone: AdamW does to every
number what it would do to it among all others. So the most that is held is one whole model with its gradients, or two
that are compared, beside the parts of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import Parameter
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from rlhf.processes import engine, team

# In place: what gathers into a list has nccl hold all of it once more. The second is its name before torch 2.13.
all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What this process keeps of some parameters of a model, of one dtype, whose numbers lie end to end."""

    own: Parameter
    places: list[tuple[Parameter, torch.Size]]

    def gather(self) -> None:
        """Make the parameters whole."""
        flat = self._flat()
        all_gather(flat, self.own.detach())
        for (parameter, _), values in zip(self.places, self._views(flat), strict=True):
            parameter.data = values

    def expect(self) -> Tensor:
        """Room for the gradients of the parameters, end to end, that backward passes add to."""
        flat = self._flat().zero_()
        for (parameter, _), values in zip(self.places, self._views(flat), strict=True):
            parameter.grad = values
        return flat

    def collect(self, gradients: Tensor) -> None:
        """Keep this process's part of the gradients' sum over processes: a reduction for each, all in place."""
        chunks = gradients.chunk(team.size())
        for rank, chunk in enumerate(chunks):
            distributed.reduce(chunk, rank)
        self.own.grad = chunks[team.rank()].clone()

    @property
    def released(self) -> bool:
        """Whether the parameters are not whole now."""
        return not self.places[0][0].numel()

    def release(self) -> None:
        """Let go of the parameters, and of their gradients."""
        for parameter, _ in self.places:
            parameter.data, parameter.grad = self.own.new_empty(0), None

    def _flat(self) -> Tensor:
        return self.own.new_empty(len(self.own) * team.size())

    def _views(self, flat: Tensor) -> list[Tensor]:
        lengths = [shape.numel() for _, shape in self.places]
        split = torch.split(flat[: sum(lengths)], lengths)
        return [values.view(shape) for values, (_, shape) in zip(split, self.places, strict=True)]


def shared(model: Any) -> Any:
    """The model, cut in parts where the engine cuts models: used inside `whole` or `learning` only."""
    if engine.named() == engine.WHOLE or team.size() == 1:
        return model

    def kind(parameter: Parameter) -> tuple[str, bool]:
        return str(parameter.dtype), parameter.requires_grad

    model.parts = []
    for (_, learns), group in groupby(sorted(model.parameters(), key=kind), key=kind):
        places = [(parameter, parameter.shape) for parameter in group]
        length = -(-sum(parameter.numel() for parameter, _ in places) // team.size())
        own, start = places[0][0].new_zeros(length), -length * team.rank()
        for parameter, _ in places:  # one after the other: end to end they would stand beside themselves
            first, end = max(start, 0), min(start + parameter.numel(), length)
            if first < end:
                own[first:end] = parameter.detach().flatten()[first - start : end - start]
            start += parameter.numel()
        model.parts.append(Part(Parameter(own, requires_grad=learns), places))
    for part in model.parts:
        part.release()
    return model


def parts_of(model: Any) -> list[Part]:
    """This process's parts of a model; none of one that it holds whole."""
    return getattr(model, "parts", [])


@contextmanager
def whole(*models: Any) -> Iterator[None]:
    """Around the work of models that may be shared; every process enters it. Inside of another it does nothing."""
    parts = {id(part): part for model in models for part in parts_of(model) if part.released}.values()
    for part in parts:
        part.gather()
    try:
        yield
    finally:
        for part in parts:
            part.release()


@contextmanager
def learning(model: Any) -> Iterator[None]:
    """Around the backward passes of a step: then what `learners` are has the sum of all processes' gradients."""
    with whole(model):
        expected = [(part, part.expect()) for part in parts_of(model) if part.own.requires_grad]
        yield
        for part, gradients in expected:
            part.collect(gradients)
    if not parts_of(model):
        for learner in learners(model):
            learner.grad = team.summed(torch.zeros_like(learner) if learner.grad is None else learner.grad)


def learners(model: Any) -> list[Parameter]:
    """What an optimizer steps on: the parameters that learn, or of a shared model this process's parts of them."""
    found = [part.own for part in parts_of(model)] or model.parameters()
    return [parameter for parameter in found if parameter.requires_grad]


def clip(model: Any, max_norm: float) -> Tensor:
    """Scale the gradients down to a norm of `max_norm` at most, taken over all of the model; the norm they had."""
    norm = get_total_norm([learner.grad for learner in learners(model) if learner.grad is not None])
    if parts_of(model):
        norm = team.summed(norm.float().square()).sqrt()
    clip_grads_with_norm_(learners(model), max_norm, norm)
    return norm


class Learnt:
    """What training changes of a model, as it is saved and put back."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def state_dict(self) -> dict[int, Tensor]:
        """The weights themselves, not a copy."""
        return {number: learner.detach() for number, learner in enumerate(learners(self.model))}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[int, Tensor]) -> None:
        for number, learner in enumerate(learners(self.model)):
            learner.copy_(state_dict[number])
