"""Run the claims over runs of several seeds: `make claims`, or `make claims CLAIMS=B2,B3 RUNS="runs/a runs/b runs/c"`.

Unless claims are named these are the paper's; those of our own have the name `ours` together.

Runs that are missing are made first, then the arms of every claim, on all cores: a process of one thread for each core.
What is finished is not made again, and what was stopped is gone on with. A claim is judged as soon as its arms are
there; verdicts go to runs/claims: report.json, claims.md and a page, claims.html.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.claims.arms import ARMS
from benchmarks.claims.make import DONE, folder_of, results
from benchmarks.claims.table import OURS, PAPERS, TABLE
from rlhf.checkpoint import locked
from rlhf.errors import RlhfError
from rlhf.evaluation.experiments import Experiment, judge
from rlhf.provenance.manifests import as_made, manifests
from rlhf.reporting.page import draw_claims
from rlhf.schema import Recipe

WORKER = (sys.executable, "-m", "benchmarks.claims.make")
WORDS = {True: "holds", False: "does not hold", "untestable": "untestable"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    parser.add_argument("claims", nargs="*", help="by name: B2,B3; ours or all; the paper's")
    parser.add_argument("--runs", nargs="+", type=Path, default=[Path(f"runs/tiny-{seed}") for seed in (3, 4, 5)])
    parser.add_argument("--out", type=Path, default=Path("runs/claims"), help="folder of arms and verdicts")
    parser.add_argument("--set", nargs="*", default=[], help="settings for all that is made: evaluate.dialogues=8")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at once; all cores")
    parser.add_argument("--list", action="store_true", help="say what would be run, and stop")
    options = parser.parse_args()
    by_id = {experiment.id: experiment for experiment in TABLE}
    groups = {"ours": [known.id for known in OURS], "all": list(by_id)}
    named = [name for word in options.claims for name in word.split(",") if name]
    names = [id for name in named for id in groups.get(name, [name])] or [known.id for known in PAPERS]
    if unknown := [name for name in names if name not in by_id]:
        raise SystemExit(f"no claim {', '.join(unknown)}; claims: {', '.join([*by_id, *groups])}")
    chosen = [by_id[name] for name in dict.fromkeys(names)]
    if options.list:
        for experiment in chosen:
            print(f"{experiment.id:<14}{experiment.claim}  [{', '.join(experiment.arms) or experiment.why_not}]")
        return 0
    with locked(options.out):
        try:
            asyncio.run(examine(chosen, options))
        except ExceptionGroup as errors:  # what waited for the one that failed says the same
            raise errors.exceptions[0] from None
    return 0


async def examine(experiments: Sequence[Experiment], options: argparse.Namespace) -> None:
    """Make every arm that these claims need, of every run, after what it is made from; judge each claim after its own.

    The first that fails ends the others: they are asked to stop, and save.
    """
    wanted = {arm for experiment in experiments for arm in experiment.arms}
    wanted |= {ARMS[arm].like for arm in wanted} | ({"run"} if wanted else set())
    made: dict[tuple[Path, str], asyncio.Task[None]] = {}
    count = min(max(options.jobs, 1), len(wanted) * len(options.runs))
    async with workers(count, options) as free, asyncio.TaskGroup() as group:
        for name in (name for name in ARMS if name in wanted):
            for run in options.runs:
                before = made.get((run, ARMS[name].like or "run"))  # none for the run itself
                made[run, name] = group.create_task(make(name, run, before, free))
        for experiment in experiments:
            needed = [made[run, arm] for run in options.runs for arm in experiment.arms]
            group.create_task(settle(experiment, needed, options))


@asynccontextmanager
async def workers(count: int, options: argparse.Namespace) -> AsyncIterator[asyncio.Queue[Process]]:
    """Processes that make one arm after another: each loads its libraries once. They end with this block."""
    words = (*WORKER, "--out", options.out, "--set", *options.set)
    one = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    large_pages = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # where there are any: a few percent of the time
    free: asyncio.Queue[Process] = asyncio.Queue()
    # A session of its own: Ctrl-C reaches this process alone, which then asks the others to stop.
    started = [
        await asyncio.create_subprocess_exec(
            *words, stdin=PIPE, stdout=PIPE, stderr=STDOUT, env=large_pages | os.environ | one, start_new_session=True
        )
        for _ in range(count)
    ]
    for process in started:
        free.put_nowait(process)
    try:
        yield free
    except BaseException:
        for process in started:
            if process.returncode is None:
                process.terminate()
        raise
    finally:
        for process in started:
            await process.communicate(b"")  # nothing more is asked


async def make(name: str, run: Path, before: asyncio.Task[None] | None, free: asyncio.Queue[Process]) -> None:
    """One arm of a run, by a process that is free; each of its lines says whose it is."""
    if before:
        await before
    process = await free.get()
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{name} {run}\n".encode())
    async for line in process.stdout:
        said, done, _ = line.decode(errors="replace").rstrip().partition(DONE)
        if said:  # a line that was not ended may stand before the last one
            print(f"{run.name}/{name}  {said}", flush=True)
        if done:
            free.put_nowait(process)
            return
    what = f"{run.name}/{name} failed: its process ended with {await process.wait()}"
    raise RlhfError(what, hints=["what is finished is kept: mend it and start again"])


async def settle(experiment: Experiment, needed: Sequence[asyncio.Task[None]], options: argparse.Namespace) -> None:
    """The verdict on one claim, once its arms are made; it is said, and put among those of earlier calls."""
    await asyncio.gather(*needed)
    reports = {}
    for run in options.runs if experiment.arms else ():
        seed = as_made(run, Recipe(run=run.name)).seed
        reports[seed] = {arm: results(folder_of(arm, run, options.out)) for arm in experiment.arms}
    runs = {str(run): newest(run) for run in options.runs}
    found = judge(experiment, reports) | of_what(experiment, runs)
    # A verdict on other runs or arms, or on these before they were made again, is none on these.
    earlier = read(options.out / "report.json") | {experiment.id: found}
    kept = {}
    for known in TABLE:
        if known.id in earlier and earlier[known.id] == earlier[known.id] | of_what(known, runs):
            kept[known.id] = earlier[known.id]
    write(options.out, kept, list(runs))
    print(f"{experiment.id}: {WORDS[found['holds']]}: {found['claim']}. {found['figure']} ({found['evidence']})")


def of_what(experiment: Experiment, runs: Mapping[str, str | None]) -> dict[str, Any]:
    """What a verdict is on: the runs, each with its newest step, and the arms with their settings."""
    if not experiment.arms:
        return {"runs": {}, "arms": {}}
    names = {*experiment.arms, *(ARMS[name].like for name in experiment.arms)} - {""}
    arms: dict[str, Any] = json.loads(json.dumps({name: asdict(ARMS[name]) for name in sorted(names)}))
    return {"runs": runs, "arms": arms}


def newest(run: Path) -> str | None:
    """The fingerprint of a run's last finished step: it depends on all that the step was made from."""
    found = list(manifests(run).values())
    return found[-1]["fingerprint"] if found else None


def read(path: Path) -> dict[str, Any]:
    """Verdicts of earlier calls."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["claims"] if path.exists() else {}
    return found


def write(out: Path, verdicts: dict[str, Any], runs: Sequence[str]) -> None:
    """Verdicts as report.json, whole or not at all, as a table and as a page."""
    (out / ".report.json").write_text(json.dumps({"claims": verdicts}, indent=1), encoding="utf-8")
    (out / ".report.json").replace(out / "report.json")
    rows = [("id", "claim", "verdict", "figure", "evidence"), ("---",) * 5]
    rows += [
        (name, found["claim"], WORDS[found["holds"]], found["figure"], found["evidence"])
        for name, found in verdicts.items()
    ]
    lines = ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
    (out / "claims.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    judged = [Path(run) for run in runs if "B34" in verdicts]
    scaling = {run.name: results(folder_of("scaling", run, out)).get("scaling", {}) for run in judged}
    (out / "claims.html").write_text(draw_claims(verdicts, runs, scaling), encoding="utf-8")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RlhfError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: what is finished is kept, start it again to go on")
