"""`rlhf status`: which artefacts of a run are done, stale, running or missing."""

from __future__ import annotations

from pathlib import Path

from rlhf.commands.request import Request
from rlhf.commands.text import table
from rlhf.errors import RlhfError
from rlhf.planning.steps import Step


def main(request: Request) -> int:
    """rlhf status."""
    from rlhf import pipeline
    from rlhf.checkpoint import is_locked
    from rlhf.provenance.meter import Journal

    loaded = request.load()
    run_dir = loaded.run_dir
    steps = pipeline.select(pipeline.expand(loaded.recipe), request.stage)
    events, busy = Journal(run_dir / "events.jsonl").last(), is_locked(run_dir)
    rows = []
    for step, decision in pipeline.plan(steps, loaded.recipe, run_dir):
        last = events.get(step.name, {})
        if last.get("event") == "start" and busy:
            rows.append([step.name, "running", "", "", "", f"since {last['time']}"])
        else:
            rows.append([step.name, *artefact(step, run_dir, decision.run, decision.reason, last)])
    table([["step", "state", "made", "took", "size", "why"], *rows])
    return 0


def artefact(step: Step, run_dir: Path, stale: bool, reason: str, last: dict[str, str]) -> list[str]:
    """State, when, seconds, size and why of one step's artefact."""
    from rlhf.checkpoint import read_manifest
    from rlhf.planning.room import size

    try:
        manifest = read_manifest(run_dir / step.name)
    except RlhfError:
        if last.get("event") == "failed":
            return ["failed", last["time"], "", "", last["reason"].splitlines()[0]]
        if last.get("event") == "start":
            return ["interrupted", last["time"], "", "", "it never finished; `rlhf run` goes on from its last save"]
        return ["missing", "", "", "", reason]
    figures = [manifest["finished_at"], f"{manifest['seconds']:.1f} s", f"{size(manifest) / 1e6:.1f} MB"]
    return ["stale" if stale else "done", *figures, reason]
