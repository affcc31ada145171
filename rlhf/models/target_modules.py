"""Training some layers of a model only, named as PEFT names them: `target_modules`."""

from __future__ import annotations

from collections.abc import Collection

from torch.nn import Parameter
from transformers import PreTrainedModel

from rlhf.errors import ConfigError


def require_modules(model: PreTrainedModel, names: Collection[str], *, setting: str) -> None:
    """ConfigError if a name is no layer's that can learn; to be asked before anything is sampled."""
    found = _trainable(model)
    unknown = [name for name in names if not any(name in place.split(".") for place in found)]
    if unknown:
        known = {part for place in found for part in place.removesuffix(".weight").split(".") if not part.isdigit()}
        raise ConfigError(
            f"no layer that learns is called {', '.join(unknown)}",
            where=setting,
            hints=[f"layers have these names in them: {', '.join(sorted(known - {'lora_A', 'lora_B', 'default'}))}"],
        )


def train_only(model: PreTrainedModel, names: Collection[str]) -> PreTrainedModel:
    """The model, of which nothing learns but the layers of these names, or the adapters beside them; none: all do."""
    for place, parameter in _trainable(model).items() if names else ():
        parameter.requires_grad_(not set(place.split(".")).isdisjoint(names))
    return model


def _trainable(model: PreTrainedModel) -> dict[str, Parameter]:
    """The weights, or where there are adapters, theirs."""
    weights = dict(model.named_parameters())
    return {place: weight for place, weight in weights.items() if "lora_" in place} or weights
