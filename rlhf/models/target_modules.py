"""Training some layers of a model only, named as PEFT names them: `target_modules`.

A name is that of a module, or the end of its path: `q_proj`, `self_attn.q_proj`, `mlp`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf.errors import ConfigError
from rlhf.models import adapters
from rlhf.models.load import config_of
from rlhf.schema import ModelConfig


def require_modules(checkpoint: Path, config: ModelConfig, names: Collection[str], *, setting: str) -> None:
    """ConfigError if a name is no layer's that can learn. It reads no weights: to be asked before anything is made."""
    if not names:
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(checkpoint))
        if config.lora.rank:
            adapters.add(model, config.lora)
    places = {place.rpartition(".")[0] for place, weight in model.named_parameters() if weight.requires_grad}
    if unknown := [name for name in names if not any(called(place, [name]) for place in places)]:
        known = sorted({place.partition(".lora_")[0].rpartition(".")[2] for place in places})
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
    return any(f".{name}." in f".{place}." for name in names)
