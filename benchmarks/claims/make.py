"""Arms of runs, one after another, as they are read from standard input: a line `no-margin runs/tiny-0` for each.

An arm is a finished run with some steps made again under other settings; everything they read is the run's own, or of
the arm that this one is `like`. The run itself is the arm `run`. The pipeline makes them: what is done is skipped, and
what was stopped is gone on with.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.claims.arms import ARMS, Arm
from benchmarks.claims.scores import scores
from rlhf import pipeline
from rlhf.config import load, merge, split
from rlhf.errors import MissingError, RlhfError
from rlhf.provenance.manifests import as_made, manifests
from rlhf.report import metric_rows
from rlhf.schema import Recipe

DONE = "-- this arm is made --"
"""The last line about an arm."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims.make", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/claims"))
    parser.add_argument("--set", nargs="*", default=[])
    options = parser.parse_args()
    threading.Thread(target=leave_with, args=(os.getppid(),), daemon=True).start()
    for line in sys.stdin:
        arm, run = line.rstrip("\n").split(" ", 1)
        make(arm, Path(run), options.out, options.set)
        print(DONE, flush=True)


def leave_with(parent: int) -> None:
    """End with the process that began this one: killed, it can stop nobody, and a second one finds no folder locked."""
    while os.getppid() == parent:
        time.sleep(0.3)
    os._exit(1)


def make(name: str, run: Path, out: Path, settings: list[str]) -> None:
    """Bring one arm up to date; the arm it is like has been made."""
    arm, folder = ARMS[name], folder_of(name, run, out)
    if not arm.again:
        make_run(run, settings)
        return
    tiny = load("tiny", [f"run={name}"]).recipe  # has the word on stages that the run did not make
    given = [setting.replace("{run}", str(run.resolve())) for setting in (*arm.settings, *settings, "wandb=disabled")]
    made_with = as_made(run, tiny).model_dump(mode="json")
    recipe = Recipe.model_validate(merge(made_with, dict(split(setting) for setting in given)))
    begin(folder, arm, recipe, folder_of(arm.like or "run", run, out), run)
    with scores(arm.times, whitened=arm.whitened):
        pipeline.run_recipe(recipe, folder, stage=",".join(arm.again), report=False)


def make_run(run: Path, settings: list[str]) -> None:
    """The default recipe with the seed that the folder's name ends in; a run with every step is taken as it is."""
    seed = re.search(r"\d+$", run.name)
    if not seed and not manifests(run):
        hints = [f"make it: rlhf run seed=N run={run.name}", "or let its name end in the seed of a run to make: tiny-3"]
        raise MissingError(f"{run} has no finished step", hints=hints)
    given = [f"run={run.name}", *([f"seed={int(seed[0])}"] if seed else []), *settings, "wandb=disabled"]
    recipe = as_made(run, load("tiny", given).recipe)
    if {step.name for step in pipeline.expand(recipe)} - manifests(run).keys():
        pipeline.run_recipe(recipe, run)


def begin(folder: Path, arm: Arm, recipe: Recipe, *sources: Path) -> None:
    """Link what the arm's steps read and do not make, anew each time: the run may have changed since."""
    folder.mkdir(parents=True, exist_ok=True)
    for step in folder.glob("[!.]*/"):
        if step.name not in arm.again:  # also what an arm of this name once made, and does not any more
            shutil.rmtree(step)
    steps = [step for step in pipeline.expand(recipe) if step.name in arm.again]
    for name in {name for step in steps for name in step.inputs} - set(arm.again):
        source = next((source / name for source in sources if (source / name / "manifest.json").exists()), None)
        if source is not None:
            shutil.copytree(source, folder / name, copy_function=os.link)


def folder_of(name: str, run: Path, out: Path) -> Path:
    """Where the steps of an arm are."""
    return out / run.name / name if ARMS[name].again else run


def results(folder: Path) -> dict[str, Any]:
    """What every step of a folder left: {step: its results, and "heldout": what it last saw of held-out prompts}."""
    paths: Iterable[Path] = folder.glob("[!.]*/results.json")
    return {
        path.parent.name: json.loads(path.read_text(encoding="utf-8")) | {"heldout": last_check(path.parent)}
        for path in paths
    }


def last_check(step: Path) -> dict[str, float]:
    """The newest held-out figures that a step logged, of the policy as it was then and not as it was kept."""
    checks = [row for row in metric_rows(step) if "heldout/kl" in row]
    found = checks[-1].items() if checks else ()
    return {name.removeprefix("heldout/"): value for name, value in found if name.startswith("heldout/")}


if __name__ == "__main__":
    try:
        main()
    except RlhfError as error:
        sys.exit(f"error: {error}")
