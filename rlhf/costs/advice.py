"""The nearest change that makes a stage fit, of those that run: first what leaves the numbers alone, then adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rlhf.costs.hardware import Hardware
from rlhf.costs.shapes import Shape
from rlhf.costs.stages import Cost, cost_of

if TYPE_CHECKING:
    from rlhf.schema import Recipe


def nearest(stage: str, recipe: Recipe, shape: Shape, hardware: Hardware) -> tuple[tuple[str, ...], Cost] | None:
    """What to type for the stage to fit, the least first, and what it then costs; None if nothing here helps."""
    assert hardware.gpu_memory is not None
    for words, changed, spread in _changes(stage, recipe, hardware):
        for rows in _halved(recipe.generation.rows_per_batch):
            cost = cost_of(stage, _with(changed, "generation", rows_per_batch=rows), shape, spread)
            if cost.bytes.total <= hardware.gpu_memory:
                fewer = rows != recipe.generation.rows_per_batch
                return ((*words, f"generation.rows_per_batch={rows}") if fewer else words), cost
            if not cost.bytes.cache:
                break
    return None


def _changes(stage: str, recipe: Recipe, hardware: Hardware) -> Iterator[tuple[tuple[str, ...], Recipe, Hardware]]:
    """Changes of the recipe, each without and with another engine, where that may help; 4-bit weights are not cut."""
    for words, changed in _settings(stage, recipe, hardware):
        yield words, changed, hardware
        if hardware.gpus > 1 and hardware.engine == "ddp" and changed.model.quantisation == "none":
            yield (*words, f"launch={'cpu-' * hardware.cpu}fsdp"), changed, replace(hardware, engine="fsdp")


def _settings(stage: str, recipe: Recipe, hardware: Hardware) -> Iterator[tuple[tuple[str, ...], Recipe]]:
    """Changes of growing reach, none first; each keeps those before it."""
    words: tuple[str, ...] = ()
    yield words, recipe
    for section, name, value in ((stage, "microbatch_size", 1), ("model", "gradient_checkpointing", True)):
        if getattr(getattr(recipe, section), name, value) != value:
            recipe = _with(recipe, section, **{name: value})
            words = (*words, f"{section}.{name}={str(value).lower()}")
            yield words, recipe
    if recipe.model.lora.rank is None:
        lora = recipe.model.lora.model_copy(update={"rank": 16})
        recipe = _with(recipe, "model", lora=lora, dtype="bfloat16")
        words = (*words, "model.lora.rank=16", "model.dtype=bfloat16")
        yield words, recipe
    if recipe.model.quantisation == "none" and hardware.engine == "ddp":
        yield (*words, "model.quantisation=nf4"), _with(recipe, "model", quantisation="nf4")


def _halved(rows: int) -> Iterator[int]:
    while rows:
        yield rows
        rows //= 2


def _with(recipe: Recipe, section: str, **values: Any) -> Recipe:
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})
