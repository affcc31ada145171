"""Whether a given model reads texts as long as the recipe lets them be. Torch-free."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.errors import ConfigError

if TYPE_CHECKING:
    from rlhf.schema import ModelConfig


def require_context(model: ModelConfig) -> None:
    """ConfigError if model.max_length is more than the positions that the folder model.path was made for.

    Positions beyond them fail in some models and are garbage in the others. Stretched ones are left to whoever
    stretched them, and a hub id is not known before it is there.
    """
    about: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        about = json.loads((Path(model.path or "").expanduser() / "config.json").read_text(encoding="utf-8"))
    rope = about.get("rope_parameters") or about.get("rope_scaling") or {}
    limit = about.get("max_position_embeddings")
    if isinstance(limit, int) and limit < model.max_length and rope.get("rope_type", "default") == "default":
        raise ConfigError(
            f"model.max_length is {model.max_length}, and {model.path} reads {limit} tokens",
            where=f"{Path(str(model.path)) / 'config.json'}: max_position_embeddings",
            hints=[f"model.max_length={limit}"],
        )
