"""`rlhf plan`: what `run` would do, and why."""

from __future__ import annotations

from rlhf.commands.request import Request
from rlhf.commands.text import table


def main(request: Request) -> int:
    """rlhf plan."""
    from rlhf import pipeline

    loaded = request.load()
    steps = pipeline.select(pipeline.expand(loaded.recipe), request.stage)
    rerun, reuse = "--rerun" in request.flags, "--reuse" in request.flags
    planned = pipeline.plan(steps, loaded.recipe, loaded.run_dir, rerun=rerun, reuse=reuse)
    table([step.name, "run" if decision.run else "skip", decision.reason] for step, decision in planned)
    return 0
