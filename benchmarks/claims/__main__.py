"""Run the claims: `python -m benchmarks.claims [B28 B34 ...]`, or `make claims`.

Every arm and seed is a run of its own under runs/claims/, made by the pipeline: steps that are done are skipped, a
killed one is gone on with, and an arm begins with the finished steps of the main arm of its seed, so that what does not
differ is computed once. Verdicts go to runs/claims/report.json and runs/claims/claims.html after every claim.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.claims.table import ARMS, TABLE
from rlhf import pipeline
from rlhf.config import load
from rlhf.errors import RlhfError
from rlhf.evaluation.experiments import Experiment, judge

RECIPE = Path(__file__).with_name("recipe.yaml")
WORDS = {True: "holds", False: "does not hold", "untestable": "untestable here"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    parser.add_argument("claims", nargs="*", help="only these, by name: B28")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/claims"))
    parser.add_argument("--set", nargs="*", default=[], help="settings for every arm: threads=1")
    parser.add_argument("--list", action="store_true", help="say what would be run, and stop")
    options = parser.parse_args()
    by_id = {experiment.id: experiment for experiment in TABLE}
    if unknown := [name for name in options.claims if name not in by_id]:
        raise SystemExit(f"no claim {', '.join(unknown)}; claims: {', '.join(by_id)}")
    wanted = [by_id[name] for name in options.claims or by_id]
    verdicts = read(options.runs / "report.json")
    for experiment in wanted:
        if options.list:
            print(f"{experiment.id:<8}{experiment.claim}  [{', '.join(experiment.arms) or experiment.why_not}]")
            continue
        verdicts[experiment.id] = examine(experiment, options)
        write(options.runs, {name: verdicts[name] for name in by_id if name in verdicts})
        found = verdicts[experiment.id]
        print(f"{experiment.id}: {WORDS[found['holds']]}: {found['claim']}. {found['figure'] or found['evidence']}")
    return 0


def examine(experiment: Experiment, options: argparse.Namespace) -> dict[str, Any]:
    """The verdict on one claim, after the runs it needs."""
    runs = {
        seed: {arm: made(arm, seed, options.runs, options.set) for arm in experiment.arms} for seed in options.seeds
    }
    return judge(experiment, runs if experiment.arms else {})


def made(arm: str, seed: int, runs: Path, settings: list[str]) -> dict[str, Any]:
    """The report of one arm and seed; what is finished is not made again."""
    folder = runs / f"{arm}-{seed}"
    for other in sorted(runs.glob(f"*-{seed}")):
        take_over(other, folder)
    overrides = [*ARMS[arm], f"seed={seed}", f"run={arm}-{seed}", "wandb=disabled", *settings]
    recipe = load(str(RECIPE), overrides).recipe
    pipeline.run_recipe(recipe, folder, say=lambda line: print(f"  {arm}-{seed}  {line}", flush=True))
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


def take_over(other: Path, folder: Path) -> None:
    """Link the finished steps of another arm that this one has not got; the pipeline makes those anew that differ."""
    if other == folder or not other.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for step in sorted(other.iterdir()):
        if (step / "manifest.json").exists() and not (folder / step.name).exists():
            shutil.copytree(step, folder / step.name, copy_function=os.link)


def read(path: Path) -> dict[str, Any]:
    """Verdicts of earlier calls."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["claims"] if path.exists() else {}
    return found


def write(runs: Path, verdicts: dict[str, Any]) -> None:
    """Verdicts as report.json and as a page."""
    runs.mkdir(parents=True, exist_ok=True)
    (runs / "report.json").write_text(json.dumps({"claims": verdicts}, indent=1), encoding="utf-8")
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>\n"
        for cells in (
            (name, found["claim"], WORDS[found["holds"]], found["figure"], found["evidence"])
            for name, found in verdicts.items()
        )
    )
    head = "".join(f"<th>{word}</th>" for word in ("id", "claim", "verdict", "effect", "evidence"))
    style = "body{font:15px sans-serif;max-width:70em;margin:2em auto}td,th{text-align:left;padding:.3em .8em}"
    page = f"<!doctype html><meta charset=utf-8><title>Claims</title><style>{style}</style><h1>Claims</h1>\n"
    (runs / "claims.html").write_text(f"{page}<table><tr>{head}</tr>\n{rows}</table>\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RlhfError as error:
        sys.exit(f"error: {error}")
