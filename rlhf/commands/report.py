"""`rlhf report`: report.json and report.html of a run, written again; of several runs, a page side by side as well."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlhf.commands.request import Request

if TYPE_CHECKING:
    from rlhf.config import Loaded

FORMATS = ("terminal", "markdown")


def main(request: Request) -> int:
    """rlhf report."""
    from rich.console import Console

    from rlhf.checkpoint import shown
    from rlhf.report import markdown, summary

    form, runs = request.option("format", FORMATS), several(request)
    if runs:
        return side_by_side(request, runs)
    loaded = request.load()
    written = write(loaded)
    if form == "markdown":
        print(markdown(written))
        return 0
    Console().print(summary(written))
    print(f"report: {shown(loaded.run_dir / 'report.html')}")
    return 0


def several(request: Request) -> list[str]:
    """The names of `run=a,b`, or nothing for a single run."""
    given = [word.partition("=")[2] for word in request.overrides if word.startswith("run=")]
    names = [name.strip() for name in given[-1].split(",") if name.strip()] if given else []
    return list(dict.fromkeys(names)) if len(names) > 1 else []


def side_by_side(request: Request, runs: list[str]) -> int:
    """Each run's report, and the page that compares them."""
    from rlhf.checkpoint import shown
    from rlhf.config import load
    from rlhf.provenance.manifests import as_made
    from rlhf.provenance.origins import settings
    from rlhf.report import redact_settings
    from rlhf.reporting.compare import draw

    others = [word for word in request.overrides if not word.startswith("run=")]
    loaded = {run: load(request.config, [*others, f"run={run}"]) for run in runs}
    reports = {run: write(one) for run, one in loaded.items()}
    made = {run: settings(as_made(one.run_dir, one.recipe)) for run, one in loaded.items()}
    rows = {run: redact_settings([(name, value, "") for name, value, _ in found]) for run, found in made.items()}
    page = next(iter(loaded.values())).runs_dir / f"compare-{'-'.join(runs)}.html"
    page.write_text(draw(reports, rows), encoding="utf-8", errors="replace")
    print(f"report: {shown(page)}")
    return 0


def write(loaded: Loaded) -> dict[str, Any]:
    """The report of one run, which has to be there."""
    from rlhf import pipeline, report
    from rlhf.checkpoint import shown
    from rlhf.errors import MissingError
    from rlhf.provenance.manifests import as_made

    if not loaded.run_dir.is_dir():
        raise MissingError(
            f"{shown(loaded.run_dir)} does not exist", hints=[f"make it: rlhf run run={loaded.recipe.run}"]
        )
    steps = pipeline.expand(as_made(loaded.run_dir, loaded.recipe))
    return report.write(loaded.run_dir, loaded.recipe, steps, origins=loaded.origins)
