"""What reward models and judges say of the policies' answers: how their scores are spread, and who wins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise, product
from typing import Any

from rlhf.reporting.figures import Chart
from rlhf.reporting.plots import Shape, ridges
from rlhf.reporting.table import ABSENT, Report, Sheet, span
from rlhf.reporting.text import percent, two_places
from rlhf.tracking.histogram import edges

PROMPTS = ("ordinary", "adversarial")
JUDGES = {"helpfulness": "Helpfulness model", "safety": "Safety model", "gold": "Gold"}
DRAWN = ("0.05", "0.25", "0.5", "0.75", "0.95")
REWARD = {"ordinary": "helpfulness", "adversarial": "safety"}
"""Whose score is the reward on such prompts."""
AXES = {"helpfulness": "ordinary", "harmlessness": "adversarial"}
WINNERS = {"own": "own models", "gold": "gold", "judge": "judge"}
Group = tuple[str, str, dict[str, Mapping[str, Any]]]
"""A judge, a kind of prompts, and what it says of every policy there."""


def charts(report: Report) -> list[list[Chart]]:
    """For each kind of prompts a row of charts: one for every judge, with all policies one under another (Fig 20)."""
    return [[_chart(group, report) for group in groups(report, prompts)] for prompts in PROMPTS]


def sheets(report: Report) -> list[Sheet]:
    """The same in numbers, a table for every chart."""
    return [_quantiles(group) for prompts in PROMPTS for group in groups(report, prompts)]


def groups(report: Report, prompts: str) -> Iterator[Group]:
    """Every judge that has scored answers to such prompts, with the policies it has scored."""
    for judge in JUDGES:
        scored = {name: entry.get("distributions", {}) for name, entry in report.get("policies", {}).items()}
        found = {name: by[judge][prompts] for name, by in scored.items() if prompts in by.get(judge, {})}
        if found:
            yield judge, prompts, found


def moved(group: Group, gold: Mapping[str, Mapping[str, Any]]) -> str:
    """In words: how far the newest policy is from the first tuned one, and every step on which something fell.

    A fall is said if it is beyond its 95% interval. Where the newest model's score rises and gold falls, so is that: on
    the prompts where such a score is the reward.
    """
    judge, prompts, found = group
    names = list(found)
    said = [_step(first, names[-1], shift) for first, shift in list(found[names[-1]].get("shift", {}).items())[:1]]
    for before, name in pairwise(names):
        shift = found[name].get("shift", {}).get(before)
        judged = gold.get(name, {}).get("shift", {}).get(before)
        if shift and -1 in map(_sign, shift.values()):
            said.append(_step(before, name, shift))
        if shift and judged and REWARD[prompts] == judge and _sign(shift["mean"]) > 0 > _sign(judged["mean"]):
            said.append(f"From {before} to {name} this score rises and gold {_course(judged['mean'])}.")
    return " ".join(dict.fromkeys(said))


def wins(report: Report) -> Sheet | None:
    """How often each policy's answer is better than that of one of them to the same prompt (Fig 11)."""
    found = {name: by for name, by in report.get("win_rates", {}).items() if name != "against"}
    columns = [
        (judge, axis)
        for judge, axis in product(WINNERS, AXES)
        if any(axis in by.get(judge, {}) for by in found.values())
    ]
    if not columns:
        return None
    rows, errors = [], []
    for name, by in found.items():
        cells = [by.get(judge, {}).get(axis) for judge, axis in columns]
        rows.append((name, *(percent(cell["rate"]) if cell else ABSENT for cell in cells)))
        errors.append(("", *(span(cell["interval"], percent) if cell else "" for cell in cells)))
    head = ("policy", *(f"{WINNERS[judge]}, {AXES[axis]}" for judge, axis in columns))
    note = "a tie counts half; own models flatter what was trained on them"
    return Sheet(f"Wins against {report['win_rates']['against']}", head, tuple(rows), note, tuple(errors))


def _chart(group: Group, report: Report) -> Chart:
    judge, prompts, found = group
    shapes = [
        Shape(name, edges(row["histogram"]), row["histogram"]["counts"], tuple(row["quantiles"][q] for q in DRAWN))
        for name, row in found.items()
    ]
    svg = ridges(
        f"spread-{judge}-{prompts}", shapes, x="gold quality" if judge == "gold" else "score, as a probability"
    )
    alt = "; ".join(
        f"{name}: median {two_places(row['quantiles']['0.5'])}, worst tenth {two_places(row['quantiles']['0.1'])}"
        for name, row in found.items()
    )
    gold = next((found for judge, _, found in groups(report, prompts) if judge == "gold"), {})
    return Chart(_title(group), svg, moved(group, gold), alt)


def _quantiles(group: Group) -> Sheet:
    found = group[2]
    shares = list(next(iter(found.values()))["quantiles"])
    rows = [(name, f"{r['n']:,}", *(two_places(r["quantiles"][q]) for q in shares)) for name, r in found.items()]
    return Sheet(_title(group), ("policy", "n", *(f"{float(q):.0%}" for q in shares)), tuple(rows))


def _title(group: Group) -> str:
    return f"{JUDGES[group[0]]}, {group[1]} prompts"


def _sign(change: Mapping[str, Any]) -> int:
    """1 or -1 where a change is beyond its 95% interval, else 0."""
    low, high = map(float, change["interval"])
    return (low > 0) - (high < 0)


def _step(before: str, name: str, shift: Mapping[str, Any]) -> str:
    return f"From {before} to {name} the mean {_course(shift['mean'])}, the worst tenth {_course(shift['p10'])}."


def _course(change: Mapping[str, Any]) -> str:
    size, ends = change.get("mean", change.get("difference")), change["interval"]
    if not _sign(change):
        return f"stays within the error ({span(ends)})"
    word, ends = ("rises", ends) if size > 0 else ("falls", (-ends[1], -ends[0]))
    return f"{word} by {two_places(abs(size))} ({span(ends)})"
