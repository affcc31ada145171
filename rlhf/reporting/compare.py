"""Several runs side by side: one page of what they came to and of the settings in which they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.provenance.origins import show
from rlhf.reporting import figures, table
from rlhf.reporting.figures import Chart
from rlhf.reporting.page import pages
from rlhf.reporting.plots import Series, lines
from rlhf.reporting.table import ABSENT, POLICY_COLUMNS, WITHOUT_ORACLE, Sheet

Reports = Mapping[str, Mapping[str, Any]]


def draw(reports: Reports, settings: Mapping[str, Sequence[tuple[str, Any, str]]]) -> str:
    """The page.

    Args:
        reports: run -> report.json.
        settings: run -> name, value and origin of every setting.
    """
    return (
        pages()
        .get_template("compare.html.j2")
        .render(
            runs=[{"name": name, "headline": table.headline(report)} for name, report in reports.items()],
            last=last_policies(reports),
            rewards=reward_models(reports),
            charts=best_of_charts(reports),
            differing=differing(settings),
            costs=costs(reports),
        )
    )


def last_policies(reports: Reports) -> Sheet:
    """The last policy of every run: figures as rows, runs as columns, 95% intervals below."""
    last = {run: list(report.get("policies", {}).items())[-1:] for run, report in reports.items()}
    entries = {run: found[0][1] if found else {} for run, found in last.items()}
    rows, errors = [], []
    for column in (*POLICY_COLUMNS, *WITHOUT_ORACLE):
        values = [table.figure(entry, column.path) for entry in entries.values()]
        if any(value is not None for value in values):
            rows.append((column.head, *(ABSENT if v is None else column.write(v) for v in values)))
            bounds = [table.error_of(entry, column.path) for entry in entries.values()]
            errors.append(("", *(table.span(b, column.write) for b in bounds)))
    head = ("", *(f"{run}: {found[0][0]}" if found else run for run, found in last.items()))
    return Sheet("The last policy of every run", head, tuple(rows), "", tuple(errors))


def reward_models(reports: Reports) -> Sheet:
    """Accuracy on all held-out pairs, model and domain as rows."""
    found: dict[str, dict[str, float]] = {}
    for run, report in reports.items():
        for model, entry in report.get("reward_models", {}).items():
            for domain, part in table.domains_of(entry).items():
                if "all" in part["accuracy"]:
                    found.setdefault(f"{model} on {domain}", {})[run] = part["accuracy"]["all"]
    rows = [(name, *(f"{by[run]:.2f}" if run in by else ABSENT for run in reports)) for name, by in found.items()]
    return Sheet("Reward model accuracy", ("", *reports), tuple(rows), "0.50 is chance")


def best_of_charts(reports: Reports) -> list[Chart]:
    """Max and gold of the best of N by the last policy of every run."""
    charts = []
    for what, title, y in (
        ("max", "Best of N: reward", "score, logits"),
        ("gold_of_max", "Best of N: gold", "gold quality"),
    ):
        series = []
        for run, report in reports.items():
            by_n = list(report.get("best_of", {}).values())[-1:]
            points = sorted((float(n), float(row[what])) for n, row in (by_n[0] if by_n else {}).items() if what in row)
            if points:
                series.append(Series(run, [x for x, _ in points], [v for _, v in points]))
        if series:
            svg = lines(f"compare-{what}", series, x="N", y=y, scale="powers of two")
            charts.append(Chart(title, svg, "By the last policy of every run.", figures.alt_of(series)))
    return charts


def differing(settings: Mapping[str, Sequence[tuple[str, Any, str]]]) -> Sheet:
    """The settings that are not the same everywhere."""
    by_run = {run: {name: show(value) for name, value, _ in rows} for run, rows in settings.items()}
    names = list(dict.fromkeys(name for shown in by_run.values() for name in shown))
    rows = []
    for name in names:
        values = [shown.get(name, ABSENT) for shown in by_run.values()]
        if len(set(values)) > 1 and name != "run":
            rows.append((name, *values))
    return Sheet("Settings that differ", ("setting", *by_run), tuple(rows))


def costs(reports: Reports) -> Sheet:
    """Seconds of every step."""
    seconds = {run: {s["artefact"]: s.get("seconds") for s in report["stages"]} for run, report in reports.items()}
    names = list(dict.fromkeys(name for found in seconds.values() for name in found))
    rows = []
    for name in names:
        taken = [found.get(name) for found in seconds.values()]
        rows.append((name, *(ABSENT if value is None else f"{value:,.1f}" for value in taken)))
    return Sheet("Seconds of every step", ("step", *reports), tuple(rows))
