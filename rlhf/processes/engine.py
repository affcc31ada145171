"""How a model that learns is spread over processes: whole on each of them (ddp), or cut in parts (fsdp, and DeepSpeed's
zero1, zero2 and zero3: see zero.py). Torch-free.

A model in the Trainer's hands is cut while it learns, PPO's, and those that answer or score, until they work: then one
is whole everywhere (models/shared.py), so that no process has to wait for another between two tokens.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from rlhf.errors import ConfigError
from rlhf.processes import team

WHOLE = "ddp"
ZERO = 2  # what accelerate takes where no stage is said

HEARD = ("zero_stage", "multinode_launcher", "zero3_init", "zero3_init_flag", "zero3_save_16bit_model")
"""Of DeepSpeed's settings, as accelerate names them. All but two are done anyhow: zero3 reads in parts, saves whole."""

INSTEAD = {
    "gradient_accumulation_steps": "batch_size and microbatch_size of a stage say it: sft.microbatch_size=1",
    "gradient_clipping": "max_grad_norm of a stage says it: sft.max_grad_norm=1.0",
    "mixed_precision": "model.dtype says it, and weights and updates have the same",
    "offload_optimizer_device": "nothing is moved off the GPU: zero3 on more of them, or model.lora.rank=16",
}
INSTEAD["offload_param_device"] = INSTEAD["offload_optimizer_device"]
INSTEAD["fsdp_offload_params"] = "nothing is moved off the GPU: fsdp on more of them, or model.lora.rank=16"
INSTEAD["fsdp_activation_checkpointing"] = "model.gradient_checkpointing=true says it"


def vet(told: Mapping[str, Any], where: str) -> None:
    """ConfigError for what accelerate is told beyond how models are spread: the recipe says it, or it was not tried."""
    for name, value in told.items():
        setting = name.removeprefix("deepspeed_")
        if setting not in HEARD and str(value).lower() not in ("auto", "false", "no", "none"):
            instead = INSTEAD.get(setting, "of DeepSpeed's settings only zero_stage is")
            raise ConfigError(
                f"{setting}={value} is not taken from here", where=where, hints=[instead, "leave it out here"]
            )


@cache
def named() -> str:
    """What accelerate's launcher was told to spread models with, from the environment that it makes.

    Read once: a model is cut when it is loaded, so that no process ever holds all of it, and accelerate, which would
    cut it again, or what must stay whole, is not told.
    """
    names = [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]
    said = {name.removeprefix("ACCELERATE_").lower(): os.environ[name] for name in names}
    told = {name: said[name] for name in said if name.startswith("deepspeed_") or name in INSTEAD}
    vet(told, "what accelerate's launcher was told, by options or its own configuration file")
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)  # their names, once more
    if os.environ.pop("ACCELERATE_USE_DEEPSPEED", "") == "true":
        return f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', ZERO)}"
    return "fsdp" if os.environ.pop("ACCELERATE_USE_FSDP", "") == "true" else WHOLE


def of_file(described: Mapping[str, Any]) -> str:
    """The same, from a launch file."""
    kind = str(described.get("distributed_type", "NO")).upper()
    if kind == "DEEPSPEED":
        return f"zero{(described.get('deepspeed_config') or {}).get('zero_stage', ZERO)}"
    return "fsdp" if kind == "FSDP" else WHOLE


def cut() -> dict[str, Any]:
    """What `from_pretrained` is told of a model that is to learn."""
    return {"distributed_config": {"fsdp_size": team.size()}} if named() == "fsdp" and team.size() > 1 else {}
