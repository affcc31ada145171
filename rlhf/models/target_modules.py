"""Training some layers of a model only, named as PEFT names them: `target_modules`.

A name is that of a module, or the end of its path: `q_proj`, `self_attn.q_proj`, `mlp`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch.nn import Linear
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlhf.errors import ConfigError
from rlhf.models.adapters import TARGETS
from rlhf.models.load import NO_CODE, weights_of
from rlhf.schema import ModelConfig


def require_modules(checkpoint: Path, config: ModelConfig, names: Collection[str], *, setting: str) -> None:
    """ConfigError if a name is no layer's that can learn. It reads no weights: to be asked before anything is made."""
    if not names:
        return
    path, revision = weights_of(checkpoint)
    with torch.device("meta"):
        shape = AutoConfig.from_pretrained(path, revision=revision or "main", **NO_CODE)
        model = AutoModelForCausalLM.from_config(shape)
    layers = {place for place, module in model.named_modules() if list(module.parameters(recurse=False))}
    if config.lora.rank:
        linear = {place for place in layers if isinstance(model.get_submodule(place), Linear) and place != "lm_head"}
        named = TARGETS[config.lora.target]
        layers = linear if isinstance(named, str) else {place for place in linear if called(place, named)}
    if unknown := [name for name in names if not any(called(place, [name]) for place in layers)]:
        known = sorted({place.rpartition(".")[2] for place in layers})
        raise ConfigError(
            f"no layer that learns is called {', '.join(unknown)}",
            where=setting,
            hints=[f"layers that do: {', '.join(known)}"],
        )


def train_only(model: PreTrainedModel, names: Collection[str]) -> PreTrainedModel:
    """The model, of which nothing learns but the layers of these names, or the adapters beside them; none: all do."""
    for place, parameter in model.named_parameters() if names else ():
        parameter.requires_grad_(parameter.requires_grad and called(place.rpartition(".")[0], names))
    return model


def called(place: str, names: Collection[str]) -> bool:
    """Whether a module, or one that holds it, has one of these names at the end of its path."""
    parts = place.split(".")
    paths = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(path == name or path.endswith(f".{name}") for path in paths for name in names)
