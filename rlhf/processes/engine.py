"""How a model that learns is spread over processes: whole on each of them (ddp), or cut in parts (fsdp, and DeepSpeed's
zero1, zero2 and zero3: see zero.py). Torch-free.

A model in the Trainer's hands is cut while it learns, PPO's and those that score until they work (models/shared.py).
One that answers is whole everywhere, so that no process has to wait for another between two tokens.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from rlhf.processes import team

WHOLE = "ddp"
ZERO = 2  # what accelerate takes where no stage is said


@cache
def named() -> str:
    """What accelerate's launcher was told to spread models with, from the environment that it makes.

    Read once: a model is cut when it is loaded, so that no process ever holds all of it, and accelerate, which would
    cut it again, or what must stay whole, is not told.
    """
    os.environ.pop("ACCELERATE_CONFIG_DS_FIELDS", None)  # what else a launch file says of DeepSpeed: see launch.HEARD
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
