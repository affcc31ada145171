"""`rlhf report`: report.json and report.html of a run, written again."""

from __future__ import annotations

from rlhf.commands.request import Request

FORMATS = ("terminal", "markdown")


def main(request: Request) -> int:
    """rlhf report."""
    from rich.console import Console

    from rlhf import pipeline
    from rlhf.checkpoint import shown
    from rlhf.errors import MissingError
    from rlhf.provenance import as_made
    from rlhf.report import markdown, summary, write

    loaded = request.load()
    if not loaded.run_dir.is_dir():
        raise MissingError(
            f"{shown(loaded.run_dir)} does not exist", hints=[f"make it: rlhf run run={loaded.recipe.run}"]
        )
    steps = pipeline.expand(as_made(loaded.run_dir, loaded.recipe))
    written = write(loaded.run_dir, loaded.recipe, steps, origins=loaded.origins)
    if request.option("format", FORMATS) == "markdown":
        print(markdown(written))
        return 0
    Console().print(summary(written))
    print(f"report: {shown(loaded.run_dir / 'report.html')}")
    return 0
