"""Run the claims over finished runs: `make claims`, or `make claims CLAIMS=B2,B3 RUNS="runs/a runs/b runs/c"`.

    for seed in 0 1 2; do rlhf run seed=$seed run=tiny-$seed; done

An arm is a finished run with some steps made again under other settings; everything they read is the run's own. The
pipeline makes them: what is done is skipped, and what was killed is gone on with. Verdicts are written after every
claim, to runs/claims/report.json and runs/claims/claims.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.claims.scores import scores
from benchmarks.claims.table import ARMS, TABLE, Arm
from rlhf import pipeline
from rlhf.config import load, merge, split
from rlhf.errors import MissingError, RlhfError
from rlhf.evaluation.experiments import Experiment, judge
from rlhf.provenance.manifests import as_made, manifests
from rlhf.schema import Recipe

WORDS = {True: "holds", False: "does not hold", "untestable": "untestable"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    parser.add_argument("claims", nargs="*", help="only these, by name: B2,B3")
    parser.add_argument("--runs", nargs="+", type=Path, default=[Path(f"runs/tiny-{seed}") for seed in range(3)])
    parser.add_argument("--out", type=Path, default=Path("runs/claims"), help="folder of arms and verdicts")
    parser.add_argument("--set", nargs="*", default=[], help="settings for every arm: threads=1")
    parser.add_argument("--list", action="store_true", help="say what would be run, and stop")
    options = parser.parse_args()
    by_id = {experiment.id: experiment for experiment in TABLE}
    names = [name for word in options.claims for name in word.split(",") if name]
    if unknown := [name for name in names if name not in by_id]:
        raise SystemExit(f"no claim {', '.join(unknown)}; claims: {', '.join(by_id)}")
    verdicts = read(options.out / "report.json")
    for experiment in (by_id[name] for name in names or by_id):
        if options.list:
            print(f"{experiment.id:<14}{experiment.claim}  [{', '.join(experiment.arms) or experiment.why_not}]")
            continue
        verdicts[experiment.id] = examine(experiment, options)
        write(options.out, {name: verdicts[name] for name in by_id if name in verdicts})
        found = verdicts[experiment.id]
        print(f"{experiment.id}: {WORDS[found['holds']]}: {found['claim']}. {found['figure']} ({found['evidence']})")
    return 0


def examine(experiment: Experiment, options: argparse.Namespace) -> dict[str, Any]:
    """The verdict on one claim, after the steps it needs."""
    runs = {}
    for run in options.runs if experiment.arms else ():
        made_of = {arm: results(made(arm, run, options.out, options.set)) for arm in experiment.arms}
        runs[as_made(run, Recipe(run=run.name)).seed] = made_of
    return judge(experiment, runs)


def made(name: str, run: Path, out: Path, settings: list[str]) -> Path:
    """The folder of one arm of a run; what is finished is not made again."""
    arm = ARMS[name]
    if not manifests(run):
        raise MissingError(f"{run} has no finished step", hints=[f"make it: rlhf run seed=N run={run.name}"])
    if not arm.again:
        return run
    folder = out / run.name / name
    given = [setting.replace("{run}", str(run.resolve())) for setting in (*arm.settings, *settings, "wandb=disabled")]
    tiny = load("tiny", [f"run={name}"]).recipe  # has the word on stages that the run did not make
    recipe = as_made(run, tiny).model_dump(mode="json")
    recipe = Recipe.model_validate(merge(recipe, dict(split(setting) for setting in given)))
    begin(folder, arm, recipe, made(arm.like, run, out, settings) if arm.like else run, run)
    with scores(arm.times, whitened=arm.whitened):
        pipeline.run_recipe(
            recipe,
            folder,
            stage=",".join(arm.again),
            say=lambda line: print(f"  {run.name}/{name}  {line}", flush=True),
        )
    return folder


def begin(folder: Path, arm: Arm, recipe: Recipe, *sources: Path) -> None:
    """Link what the arm's steps read, and those steps themselves where they were made before: the pipeline judges."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = [step for step in pipeline.expand(recipe) if step.name in arm.again]
    read = {name for step in steps for name in step.inputs} - set(arm.again)
    for name in read:
        shutil.rmtree(folder / name, ignore_errors=True)  # the run may have changed since
    outside = arm.times != 1 or not arm.whitened  # a change that no fingerprint sees
    for name in (*read, *(() if outside else arm.again)):
        source = next((source / name for source in sources if (source / name / "manifest.json").exists()), None)
        if source is not None and not (folder / name).exists():
            shutil.copytree(source, folder / name, copy_function=os.link)


def results(folder: Path) -> dict[str, Any]:
    """What every step of a folder left: {step: its results}."""
    paths: Iterable[Path] = folder.glob("[!.]*/results.json")
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def read(path: Path) -> dict[str, Any]:
    """Verdicts of earlier calls."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["claims"] if path.exists() else {}
    return found


def write(out: Path, verdicts: dict[str, Any]) -> None:
    """Verdicts as report.json and as a table."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps({"claims": verdicts}, indent=1), encoding="utf-8")
    rows = [("id", "claim", "verdict", "figure", "evidence"), ("---",) * 5]
    rows += [
        (name, found["claim"], WORDS[found["holds"]], found["figure"], found["evidence"])
        for name, found in verdicts.items()
    ]
    lines = ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
    (out / "claims.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RlhfError as error:
        sys.exit(f"error: {error}")
