"""`rlhf run`: make every step that is missing or stale."""

from __future__ import annotations

import shlex

from rlhf.commands.request import Request


def main(request: Request) -> int:
    """rlhf run."""
    from rlhf import pipeline
    from rlhf.checkpoint import shown
    from rlhf.processes import team
    from rlhf.reporting.text import plain, redact

    loaded = request.load()
    if "launch" in request.options:
        from rlhf.processes import downloads, engine, launch

        described = launch.describe(request.options["launch"])
        steps = pipeline.select(pipeline.expand(loaded.recipe), request.stage)
        launch.check(loaded.recipe, steps, int(described.get("num_processes", 1)), engine.of_file(described))
        again = {"rerun": "--rerun" in request.flags, "reuse": "--reuse" in request.flags}
        planned = pipeline.plan(steps, loaded.recipe, loaded.run_dir, **again)
        downloads.fetch(loaded.recipe, [step for step, decision in planned if decision.run])
        chosen = [f"stage={request.stage}"] if request.stage else []
        return launch.start(request.options["launch"], [*loaded.arguments, *chosen, *sorted(request.flags)])
    outcome = pipeline.run_recipe(
        loaded.recipe,
        loaded.run_dir,
        stage=request.stage,
        rerun="--rerun" in request.flags,
        reuse="--reuse" in request.flags,
        locked_to="--locked" in request.flags,
        strict="--strict" in request.flags,
        origins=loaded.origins,
        arguments=loaded.arguments,
        say=lambda line: print(plain(redact(line)), flush=True),
    )
    if team.rank():
        return 0
    if outcome.report is not None:
        from rich.console import Console

        from rlhf.report import summary

        words = shlex.join(["rlhf", "report", *loaded.arguments, "format=markdown"])
        Console().print(summary(outcome.report, next_command=words))
    print(f"report: {shown(loaded.run_dir / 'report.html')}")
    return 0
