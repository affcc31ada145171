"""`rlhf reproduce RUN`: the run made again from its manifests and its lock, and compared."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.commands.request import Request
from rlhf.commands.text import table
from rlhf.errors import ConfigError, MissingError, RlhfError


def main(request: Request) -> int:
    """rlhf reproduce."""
    from rlhf import pipeline
    from rlhf.checkpoint import read_manifest, shown, verify
    from rlhf.provenance import lock
    from rlhf.provenance.manifests import as_made, manifests
    from rlhf.schema import Recipe

    if request.overrides or request.config or request.stage:
        raise ConfigError("rlhf reproduce takes its settings from the run", hints=["rlhf reproduce RUN into=NAME"])
    if len(request.words) != 1:
        raise ConfigError("rlhf reproduce needs one run: its name, or its folder", hints=["rlhf reproduce tiny"])
    runs_dir = Path(request.options.get("runs_dir") or os.environ.get("RLHF_RUNS") or "runs").expanduser()
    old = Path(request.words[0]) if Path(request.words[0]).is_dir() else runs_dir / request.words[0]
    before = manifests(old)
    if not before:
        raise MissingError(f"{shown(old)} has no finished step to make again", hints=["see what is there: rlhf status"])
    for name in before:
        verify(old / name)
    new = runs_dir / request.options.get("into", f"{old.resolve().name}-again")
    if new.resolve() == old.resolve():
        raise ConfigError(f"into={new.name} is the run itself", hints=["give another name"])
    locked = lock.read(old)
    threads = int(locked["threads"]) if locked.get("threads", "").isdigit() else None
    recipe = as_made(old, Recipe(run=new.name)).model_copy(update={"threads": threads, "wandb": "disabled"})
    steps = [step for step in pipeline.expand(recipe) if step.name in before]
    for difference in [*mixed(before, recipe), *other_code(before, {step.name: step.module for step in steps})]:
        print(f"note: {difference}")
    pipeline.run_recipe(
        recipe, new, stage=",".join(step.name for step in steps), say=lambda line: print(line, flush=True)
    )
    machine = list(lock.differences(locked, lock.read(new)))
    for difference in machine:
        print(f"note: {difference}")
    after = {step.name: read_manifest(new / step.name) for step in steps}
    differing = {name: list(files(before[name], after[name])) for name in after}
    print()
    table([[name, "differs" if found else "bit-identical", ", ".join(found)] for name, found in differing.items()])
    unequal = [name for name, found in differing.items() if found]
    if unequal:
        cause = "the notes above say what is not as it was" if machine else "the machine is as rlhf.lock says"
        raise RlhfError(f"{len(unequal)} of {len(after)} steps differ, the first is {unequal[0]}", where=cause)
    print(f"{shown(new)} is bit-identical to {shown(old)}")
    return 0


def files(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """The files of two artefacts that differ, and those that only one of them has."""
    from rlhf.checkpoint import VOLATILE

    for name in sorted({*before["files"], *after["files"]}):
        if not name.startswith(VOLATILE) and before["files"].get(name) != after["files"].get(name):
            yield name


def mixed(before: Mapping[str, Mapping[str, Any]], recipe: Any) -> Iterator[str]:
    """What of a step's settings is not as in the newest step's, so that one recipe cannot make both."""
    from rlhf.provenance.fingerprint import changed_settings, relevant

    for name, manifest in before.items():
        stage = name.rpartition("-")[0] or name
        for change in changed_settings(manifest["config"], relevant(recipe, stage)):
            yield f"{name} was made with other settings than later steps: {change}"


def other_code(before: Mapping[str, Mapping[str, Any]], modules: Mapping[str, str]) -> Iterator[str]:
    """The steps whose code is not what made them."""
    from rlhf.provenance.fingerprint import code_of

    for name, module in modules.items():
        if before[name]["code"] != code_of(module):
            yield f"{name} was made by other code ({(before[name].get('git_commit') or 'no commit')[:12]})"
