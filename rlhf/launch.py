"""Starting a run on several processes through accelerate, and refusing before that what could not work. Torch-free."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from rlhf.config import config_folders
from rlhf.errors import ConfigError, MissingError, PreemptedError, did_you_mean

if TYPE_CHECKING:
    from rlhf.schema import Recipe
    from rlhf.steps import Step

ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""With it a job of several nodes outlives one that is replaced; torch's default waits for the old address."""


def files() -> dict[str, Path]:
    """Name -> file of every accelerate configuration that can be given by name."""
    folders = [folder / "accelerate" for folder in reversed(config_folders())]
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """The file of `launch=NAME|FILE`."""
    known = files()
    if name in known:
        return known[name]
    if Path(name).expanduser().is_file():
        return Path(name).expanduser()
    hints = [did_you_mean(name, known), f"known by name: {', '.join(known)}", "or give a file of accelerate's"]
    raise ConfigError(f"no launch file {name}", hints=[hint for hint in hints if hint])


def start(name: str, arguments: Sequence[str]) -> int:
    """`rlhf run ARGUMENTS` on the processes that a launch file describes; returns the first failure's exit code."""
    file = find(name)
    described = yaml.safe_load(file.read_text(encoding="utf-8"))
    cpu = {"ACCELERATE_USE_CPU": "true"} if described.get("use_cpu") else {}  # the launcher keeps it to itself
    os.environ.update({**ENVIRONMENT, **os.environ, **cpu})
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    port = ["--main_process_port", str(free_port())] if described.get("num_machines", 1) == 1 else []
    words = ["--config_file", str(file), *port, "-m", "rlhf", "run", *arguments]
    try:
        launch_command(launch_command_parser().parse_args(words))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException:
        return PreemptedError.exit_code
    return 0


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def check(recipe: Recipe, steps: Sequence[Step], processes: int) -> None:
    """Refuse what this many processes, or this installation, cannot do."""
    if recipe.model.quantisation != "none" and find_spec("bitsandbytes") is None:
        raise MissingError(
            f"model.quantisation={recipe.model.quantisation} needs bitsandbytes",
            hints=["install it: pip install 'rlhf[quantisation]'", "or leave it out: model.quantisation=none"],
        )
    if processes == 1:
        return
    for stage in dict.fromkeys(step.stage for step in steps):
        config = getattr(recipe, stage)
        if stage == "base" and recipe.model.path is not None:
            continue
        for name in ("minibatch_size",) if stage == "ppo" else ("batch_size", "extension_batch_size"):
            rows, micro = getattr(config, name, None), getattr(config, "microbatch_size", None) or 1
            if name == "extension_batch_size" and not getattr(config, "extension_steps", 0):
                continue
            if rows and rows % (micro * processes):
                raise ConfigError(
                    f"{stage}.{name} ({rows}) must be a multiple of microbatch_size * processes ({micro * processes})",
                    hints=[f"set {stage}.{name}={-(-rows // (micro * processes)) * micro * processes}"],
                )
