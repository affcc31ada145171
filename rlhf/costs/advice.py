"""The nearest change that makes a stage fit: first what leaves the numbers alone, then more GPUs, then adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlhf.costs.memory import SHARDED
from rlhf.costs.shapes import Shape
from rlhf.costs.stages import Cost, Hardware, cost_of

if TYPE_CHECKING:
    from rlhf.schema import Recipe

MOST_GPUS = 64


def nearest(stage: str, recipe: Recipe, shape: Shape, hardware: Hardware) -> tuple[tuple[str, ...], Cost] | None:
    """What to type for the stage to fit, the least first, and what it then costs; None if nothing here helps."""
    assert hardware.gpu_memory is not None
    for words, changed, machine in _changes(stage, recipe, hardware):
        cost = cost_of(stage, changed, shape, machine)
        if cost.bytes.total <= hardware.gpu_memory:
            return words, cost
    return None


def _changes(stage: str, recipe: Recipe, hardware: Hardware) -> Iterator[tuple[tuple[str, ...], Recipe, Hardware]]:
    """Changes of growing reach; each keeps those before it that cost nothing but time."""
    words: tuple[str, ...] = ()
    for section, name, value in ((stage, "microbatch_size", 1), ("model", "gradient_checkpointing", True)):
        if getattr(getattr(recipe, section), name, value) != value:
            recipe = _with(recipe, section, **{name: value})
            words = (*words, f"{section}.{name}={str(value).lower()}")
            yield words, recipe, hardware
    for engine in ("zero2", "zero3"):
        if hardware.gpus > 1 and len(SHARDED[engine]) > len(SHARDED[hardware.engine]):
            yield (*words, f"launch={engine}"), recipe, replace(hardware, engine=engine)
    gpus = hardware.gpus
    while recipe.model.quantisation == "none" and 2 * gpus <= MOST_GPUS:
        gpus *= 2
        yield (*words, "launch=zero3", f"gpus={gpus}"), recipe, replace(hardware, engine="zero3", gpus=gpus)
    if recipe.model.lora.rank is None:
        lora = recipe.model.lora.model_copy(update={"rank": 16})
        recipe = _with(recipe, "model", lora=lora, dtype="bfloat16")
        words = (*words, "model.lora.rank=16", "model.dtype=bfloat16")
        yield words, recipe, hardware
    if recipe.model.quantisation == "none" and hardware.engine == "ddp":
        yield (*words, "model.quantisation=nf4"), _with(recipe, "model", quantisation="nf4"), hardware


def _with(recipe: Recipe, section: str, **values: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})
