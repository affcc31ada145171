"""Starting a run on several processes through accelerate, and refusing before that what could not work. Torch-free."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlhf.config import config_folders
from rlhf.errors import ConfigError, MissingError, PreemptedError, RlhfError, did_you_mean
from rlhf.processes import engine
from rlhf.security.vetting import vet_yaml

if TYPE_CHECKING:
    from rlhf.planning.steps import Step
    from rlhf.schema import Recipe

ENVIRONMENT = {
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "110",
}
"""A job of several nodes outlives one that is replaced; torch's default waits for the old address. Asked to stop, the
launcher asks its processes, and gives them the time of a step and a save: within the two minutes of `rlhf launch`."""


RESTARTS = 3
"""How often the processes of a job of several machines are started again when one is lost."""


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


PLACE = {
    "num_machines": "RLHF_MACHINES",
    "num_processes": "RLHF_PROCESSES",
    "machine_rank": "RLHF_MACHINE_RANK",
    "main_process_ip": "RLHF_MAIN_ADDRESS",
    "main_process_port": "RLHF_MAIN_PORT",
}
"""What differs between machines or jobs comes from the environment, over the file's: `rlhf launch` writes it there."""


def describe(name: str) -> dict[str, Any]:
    """What a launch file says, and the environment over it."""
    vet_yaml(text := find(name).read_text(encoding="utf-8"), find(name))
    given = {key: os.environ[variable] for key, variable in PLACE.items() if variable in os.environ}
    described = {**(yaml.safe_load(text) or {}), **given}
    told = {"mixed_precision": described.get("mixed_precision"), **(described.get("deepspeed_config") or {})}
    engine.vet(told, str(find(name)))
    return described


def start(name: str, arguments: Sequence[str]) -> int:
    """`rlhf run ARGUMENTS` on the processes that a launch file describes; returns the first failure's exit code."""
    described = describe(name)
    # The launcher keeps it to itself.
    cpu = {"ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu"} if described.get("use_cpu") else {}
    os.environ.update({**ENVIRONMENT, **os.environ, **cpu})
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    if int(described.get("num_machines", 1)) == 1:
        described["main_process_port"] = free_port()
        place = []
    else:  # rank 0 hosts the rendezvous, at which a replaced machine can come again
        host = int(int(described.get("machine_rank", 0)) == 0)
        place = ["--rdzv_backend", "c10d", "--rdzv_conf", f"is_host={host}", "--max_restarts", str(RESTARTS)]
    place += [word for key in PLACE if key in described for word in (f"--{key}", str(described[key]))]
    words = ["--config_file", str(find(name)), *place, "-m", "rlhf", "run", *arguments]
    try:
        launch_command(launch_command_parser().parse_args(words))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException:
        return PreemptedError.exit_code
    except RendezvousError as error:
        raise RlhfError(
            "the first machine, where all of them meet, cannot be reached",
            where=str(error).partition(". ")[0],
            hints=["start it again, on all machines: it goes on from its last save"],
        ) from error
    return 0


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


# --- what cannot work ---


def check(recipe: Recipe, steps: Sequence[Step], processes: int, spread: str) -> None:
    """Refuse what this many processes, or this installation, cannot do; `spread` is an engine: ddp, fsdp, zero3."""
    model = recipe.model
    if model.quantisation != "none" and spread != engine.WHOLE:
        raise ConfigError(
            f"model.quantisation={model.quantisation} cannot be spread by {spread}: 4-bit weights are not cut in parts",
            hints=["use launch=ddp", "or leave it out: model.quantisation=none"],
        )
    if model.quantisation != "none" and find_spec("bitsandbytes") is None:
        raise MissingError(
            f"model.quantisation={model.quantisation} needs bitsandbytes",
            hints=["install it: pip install 'rlhf[quantisation]'", "or leave it out: model.quantisation=none"],
        )
    if spread.startswith("zero"):
        _deepspeed(recipe, spread)
    if processes > 1:
        _divides(recipe, steps, processes)


def _deepspeed(recipe: Recipe, spread: str) -> None:
    if spread not in ("zero1", "zero2", "zero3"):
        raise ConfigError(f"DeepSpeed has no {spread}", hints=["the launch file's zero_stage is 1, 2 or 3"])
    if recipe.model.dtype != "float32":
        raise ConfigError(
            f"model.dtype={recipe.model.dtype} does not go with {spread}: DeepSpeed would keep float32 beside it",
            hints=["use launch=fsdp", "or model.dtype=float32"],
        )
    if find_spec("deepspeed") is None:
        raise MissingError(
            f"{spread} needs deepspeed",
            hints=["install it: pip install 'rlhf[deepspeed]'", "or use launch=fsdp, which cuts the same parts"],
        )


def _divides(recipe: Recipe, steps: Sequence[Step], processes: int) -> None:
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
