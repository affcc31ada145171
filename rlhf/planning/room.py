"""Room on the disk for the steps to come: how much they need, and how that is known. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.checkpoint import read_manifest, shown
from rlhf.errors import DiskError, MissingError, free_bytes
from rlhf.planning.steps import Step

if TYPE_CHECKING:
    from rlhf.schema import Recipe

ROOM = 200 * 1024**2
"""Bytes for what cannot be known beforehand: texts, metrics, W&B's files."""
SAVED = 6
"""A save of a model that learns holds its weights and Adam's two moments; the one before stays until it is verified."""


def require_room(run_dir: Path, steps: Sequence[Step], recipe: Recipe) -> None:
    """DiskError unless the artefacts of `steps`, and the saves of the hungriest of them, fit into what is free."""
    if not steps:
        return
    weights, source = weights_of(steps[0], recipe, run_dir)
    artefacts = sum(max(step.models * weights, _before(run_dir / step.name)) for step in steps)
    saves = max(step.learners for step in steps) * SAVED * weights
    need, free = artefacts + saves + ROOM, free_bytes(run_dir)
    if free < need:
        raise DiskError(
            f"{shown(run_dir)} needs {need:,} bytes, {free:,} are free",
            where=f"estimated: {artefacts:,} for {_names(steps)}, {saves:,} for two saves of what is trained"
            f" (weights and Adam's two moments), {ROOM:,} for texts; {source}",
            hints=["make room, or write elsewhere: runs_dir=FOLDER"],
        )


def weights_of(step: Step, recipe: Recipe, run_dir: Path) -> tuple[int, str]:
    """Bytes of one model's weights, and how that is known: measured on an input, or worked out from the settings."""
    for name in step.inputs:
        with suppress(MissingError):
            if found := _safetensors(read_manifest(run_dir / name)):
                return found, f"a model of {name} has {found:,}"
    model = recipe.model
    if model.path is None:
        key_values = model.hidden_size // model.heads * model.kv_heads
        attention = 2 * model.hidden_size * (model.hidden_size + key_values)
        layer = attention + 3 * model.hidden_size * model.intermediate_size + 2 * model.hidden_size
        embeddings = 2 * model.vocab_size * model.hidden_size
        found = (embeddings + model.layers * layer + model.hidden_size) * {"float32": 4, "bfloat16": 2}[model.dtype]
        return found, f"by its settings a model has {found:,}"
    folder = Path(model.path).expanduser()
    if found := sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0:
        return found, f"{model.path} has {found:,}"
    return 0, f"the size of {model.path} is not known before it is there"


def size(manifest: Mapping[str, Any]) -> int:
    """Bytes of an artefact's files."""
    return sum(length for length, _ in manifest["stat"].values())


def _safetensors(manifest: Mapping[str, Any]) -> int:
    """The weights of the largest model in an artefact; the shards of one model share a folder."""
    folders: dict[Path, int] = {}
    for name, (length, _) in manifest["stat"].items():
        if name.endswith(".safetensors"):
            folders[Path(name).parent] = folders.get(Path(name).parent, 0) + length
    return max(folders.values(), default=0)


def _before(folder: Path) -> int:
    """What the artefact took the last time: the old one stays until the new one is whole."""
    with suppress(MissingError):
        return size(read_manifest(folder))
    return 0


def _names(steps: Sequence[Step]) -> str:
    return steps[0].name if len(steps) == 1 else f"{steps[0].name} to {steps[-1].name}"
