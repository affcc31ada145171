"""Before several processes work on a stage: are they alike, can they reach each other, is there room?

The answers are exchanged before the stage's first collective, so that every process raises the same error, and what
differs is named once instead of being a hang or a wrong number later.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.checkpoint import read_manifest
from rlhf.errors import ConfigError, DiskError, MissingError, RlhfError, free_bytes
from rlhf.planning.room import ROOM
from rlhf.processes import engine, team
from rlhf.provenance import fingerprint
from rlhf.provenance.meter import versions

if TYPE_CHECKING:
    from rlhf.planning.steps import Step
    from rlhf.schema import Recipe

Facts = dict[str, str]


def hold(step: Step, recipe: Recipe, run_dir: Path) -> None:
    """Every process says what it is and has, and all of them compare.

    Raises:
        ConfigError, MissingError, DiskError: on every process alike, with the rank and host of the one that differs.
        RlhfError: if a sum over the processes is not the sum.
    """
    if team.size() == 1:
        return
    import torch
    from torch import distributed

    told: list[tuple[Facts, int]] = [({}, 0)] * team.size()
    distributed.all_gather_object(told, (facts(step, recipe, run_dir), free_bytes(run_dir)))
    compare([found for found, _ in told])
    for rank, (found, free) in enumerate(told):
        if free < ROOM:
            raise DiskError(f"process {rank} on {found['host']} has {free:,} bytes free, {ROOM:,} are needed")
    total = team.summed(torch.tensor(float(team.rank() + 1))).item()
    if total != team.size() * (team.size() + 1) / 2:
        raise RlhfError(f"a sum over {team.size()} processes came out as {total:g}: their network cannot be trusted")


def facts(step: Step, recipe: Recipe, run_dir: Path) -> Facts:
    """What has to be the same everywhere: versions, code, settings, and what the stage reads. And the host."""
    found = {"host": socket.gethostname()}
    found |= {name: version for name, version in versions().items() if name != "platform"}
    found["engine"] = engine.named()
    found["code"] = fingerprint.digest(fingerprint.code_of(step.module))
    found["settings"] = fingerprint.digest(fingerprint.relevant(recipe, step.stage))
    for name in step.inputs:
        found[f"artefact {name}"] = "missing"
        with suppress(MissingError):
            found[f"artefact {name}"] = str(read_manifest(run_dir / name)["digest"])
    return found


def compare(told: Sequence[Facts]) -> None:
    """ConfigError or MissingError for the first process that is not like the first."""
    first = told[0]
    for rank, found in enumerate(told[1:], start=1):
        names = [name for name in {**first, **found} if name != "host" and first.get(name) != found.get(name)]
        if not names:
            continue
        name = names[0]
        what = f"process {rank} on {found['host']} differs from process 0 on {first['host']}: {name}"
        here, there = (str(side.get(name, "missing"))[:12] for side in (found, first))
        kind = MissingError if name.startswith("artefact ") else ConfigError
        hints = [f"also: {', '.join(names[1:])}"] if names[1:] else []
        cure = (
            "runs_dir must be a folder that all share"
            if kind is MissingError
            else "install the same, and type the same"
        )
        raise kind(f"{what} is {here}, there {there}", hints=[*hints, cure])
