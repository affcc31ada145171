"""Low-rank adapters (LoRA) in PEFT's own format: added, read, merged, taken off. The one door to peft.

The model keeps its class: adapters sit inside its linear layers, so everything that reads a model reads an adapted one.
An adapter's parameters are float32 whatever the dtype of the frozen weights, so that small steps are not rounded away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from warnings import catch_warnings

import peft
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from rlhf.errors import ConfigError
from rlhf.models.shared import Part, parts_of, whole
from rlhf.schema.model import LoraConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LEARNT, START = "default", "start"
TARGETS = {"all-linear": "all-linear", "attention": ["q_proj", "k_proj", "v_proj", "o_proj"]}


def is_adapter(checkpoint: Path) -> bool:
    """Whether a checkpoint holds an adapter rather than weights."""
    return (checkpoint / CONFIG).exists()


def heads_of(checkpoint: Path) -> list[str]:
    """The heads that were trained whole beside an adapter: `score` in a reward model."""
    return list(peft.PeftConfig.from_pretrained(str(checkpoint)).modules_to_save or [])


def add(model: PreTrainedModel, config: LoraConfig, *, head: str | None = None, name: str = LEARNT) -> None:
    """A new adapter, which changes nothing until it is trained; all other weights are frozen but the `head`'s."""
    task = peft.TaskType.SEQ_CLS if head else peft.TaskType.CAUSAL_LM
    model.add_adapter(
        peft.LoraConfig(
            task_type=task,
            r=config.rank,
            lora_alpha=config.alpha,
            target_modules=TARGETS[config.target],
            modules_to_save=[head] if head else None,
        ),
        adapter_name=name,
    )
    for place, parameter in list(model.named_parameters()):
        if parameter.requires_grad and isinstance(parameter, DTensor):
            # PEFT's copy of the head is cut as the head is, but fsdp, which puts that together, does not know it.
            owner, _, own = place.rpartition(".")
            setattr(model.get_submodule(owner), own, Parameter(parameter.full_tensor()))
    for parameter in trained(model):
        parameter.data = parameter.data.float()


def read(model: PreTrainedModel, checkpoint: Path, *, name: str = LEARNT) -> None:
    """An adapter's weights into the one of this name. A policy's serves a reward model, which keeps its own head."""
    made, given = peft.PeftConfig.from_pretrained(str(checkpoint)), model.peft_config[name]
    for setting in ("r", "lora_alpha"):
        if getattr(made, setting) != getattr(given, setting):
            called = {"r": "model.lora.rank", "lora_alpha": "model.lora.alpha"}[setting]
            raise ConfigError(
                f"{called} is {getattr(given, setting)}, but the adapter to start from has {getattr(made, setting)}",
                where=str(checkpoint),
                hints=[f"set {called}={getattr(made, setting)}", "or make the stage that made it again"],
            )
    saved = {key.removeprefix("base_model.model."): value for key, value in load_file(checkpoint / WEIGHTS).items()}
    state = peft.get_peft_model_state_dict(model, adapter_name=name) | saved
    peft.set_peft_model_state_dict(model, state, adapter_name=name)


def merge(model: PreTrainedModel, checkpoint: Path) -> PreTrainedModel:
    """The adapter added into the weights, which then stand alone."""
    with catch_warnings(action="ignore", category=FutureWarning):  # peft asks for a name that transformers retires
        merged: PreTrainedModel = peft.PeftModel.from_pretrained(model, str(checkpoint)).merge_and_unload()
    return merged.requires_grad_(True)


def trained(model: PreTrainedModel) -> list[Parameter]:
    """The parameters that an optimizer gets: all, or those of the adapter and its head."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class StartOf:
    """An adapted policy as it was when this was made: its reference in PPO, at the price of one small adapter.

    Reads like a model. A policy that starts from an adapter keeps a frozen copy of it; the base of a new adapter is
    what is left when it is switched off.
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        self.policy = policy
        with whole(policy):
            state = policy.get_adapter_state_dict(LEARNT)
            self.plain = all(not bool(value.any()) for name, value in state.items() if "lora_B" in name)
            if not self.plain:
                with catch_warnings(action="ignore", category=UserWarning):  # peft warns of a second adapter
                    policy.add_adapter(policy.peft_config[LEARNT], adapter_name=START)
                peft.set_peft_model_state_dict(policy, state, adapter_name=START)
                policy.set_adapter(LEARNT)

    @property
    def parts(self) -> list[Part]:
        """Where the policy is shared, so is this."""
        return parts_of(self.policy)

    def base_model(self, **inputs: Any) -> Any:
        """The body's forward."""
        with self._switched():
            return self.policy.base_model(**inputs)

    def get_output_embeddings(self) -> Any:
        """The head, which has no adapter."""
        return self.policy.get_output_embeddings()

    @contextmanager
    def _switched(self) -> Iterator[None]:
        if self.plain:
            self.policy.disable_adapters()
        else:
            self.policy.set_adapter(START)
        try:
            yield
        finally:
            self.policy.enable_adapters()
            self.policy.set_adapter(LEARNT)
