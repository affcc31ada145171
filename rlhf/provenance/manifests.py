"""What a run was made with, read from the manifests of its finished steps rather than from what is typed today."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from rlhf.schema import STAGES, Recipe


def manifests(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Artefact -> manifest of every finished step, the oldest first; one that cannot be read is left out."""
    found: dict[str, dict[str, Any]] = {}
    for path in run_dir.glob("[!.]*/manifest.json"):
        with suppress(OSError, ValueError):
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(manifest, dict):
                found[path.parent.name] = manifest
    return dict(sorted(found.items(), key=lambda item: str(item[1].get("finished_at", ""))))


def outside_the_sections(recipe: Recipe) -> dict[str, Any]:
    """The settings of no section: rounds, stages, seed, ...; a manifest keeps them as `recipe`."""
    dumped = recipe.model_dump(mode="json")
    return {name: value for name, value in dumped.items() if not isinstance(getattr(recipe, name), BaseModel)}


def as_made(run_dir: Path, recipe: Recipe) -> Recipe:
    """`recipe` with every setting that a finished step was made with in the place of today's; the newest has the word.

    A setting that today's schema does not have, or does not allow, keeps the value of `recipe`. Settings bind one
    another, as the context does the longest answers; so all are laid over at once, without stages that never finished
    if those do not go with them, and step by step only where neither is a recipe.
    """
    found = manifests(run_dir)
    parts = [part for made in found.values() for part in (made.get("recipe"), made.get("config"))]
    finished = [stage for stage in STAGES if any(re.fullmatch(rf"{stage}(-\d+)?", name) for name in found)]
    for stages in ({}, {"stages": finished}):
        with suppress(ValidationError):
            return _laid_over(recipe, parts, stages)
    for part in parts:
        with suppress(ValidationError):
            recipe = _laid_over(recipe, [part], {})
    return recipe


def _laid_over(recipe: Recipe, parts: Sequence[Any], more: Mapping[str, Any]) -> Recipe:
    values = recipe.model_dump(mode="json")
    for part in parts:
        _lay_over(values, part if isinstance(part, Mapping) else {})
    return Recipe.model_validate({**values, "run": recipe.run, **more})


def _lay_over(values: dict[str, Any], part: Mapping[str, Any]) -> None:
    for name, value in part.items():
        if isinstance(values.get(name), dict) and isinstance(value, Mapping):
            values[name] |= {key: inner for key, inner in value.items() if key in values[name]}
        elif name in values:
            values[name] = value
