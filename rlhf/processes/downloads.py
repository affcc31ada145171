"""What a run reads from the hub comes to a machine before its processes start, so that none waits for it in a group.

What cannot be had is left to the stage that reads it, which says so if it comes to that. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.data import sources
from rlhf.errors import RlhfError
from rlhf.schema import MICROWORLD

if TYPE_CHECKING:
    from rlhf.planning.steps import Step
    from rlhf.schema import Recipe

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
OTHERS = ["*/*", "consolidated*"]
"""Of a model: settings, weights and tokenizer, no pickle, and no weights in another layout."""


def fetch(recipe: Recipe, steps: Sequence[Step]) -> None:
    """Bring the sets of these steps, and a model that is named by its hub id, into the caches of their libraries."""
    path = recipe.model.path
    stages = dict.fromkeys(step.stage for step in steps if step.stage != "base" or path is None)
    for source in dict.fromkeys(source for stage in stages for source in getattr(recipe, stage).data):
        if source.path is None and source.name != MICROWORLD:
            with suppress(RlhfError):
                sources.fetch(source)
    if steps and path is not None and not Path(path).expanduser().exists():
        from huggingface_hub import snapshot_download

        with suppress(OSError, ValueError):
            snapshot_download(path, revision=recipe.model.revision, allow_patterns=FILES, ignore_patterns=OTHERS)
