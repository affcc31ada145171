"""report.html: one file that needs no network, drawn from the template beside this module."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlhf.provenance.origins import show
from rlhf.reporting import figures, judges, rewards, table
from rlhf.reporting.changes import Kind, word_changes
from rlhf.reporting.graph import arcs
from rlhf.reporting.text import duration, percent, two_places

FOLDER = Path(__file__).parent
LONGEST_TEXT = 3000
VERDICTS: Mapping[Any, str] = {True: "holds", False: "does not hold", "untestable": "not tested"}
SEVERAL = ("hold", "do not hold", "not tested")


def is_current(page: Path, report_text: str) -> bool:
    """True if the page on disk was drawn from this very report by this very code."""
    if not page.exists():
        return False
    with page.open(encoding="utf-8", errors="replace") as file:
        return f'content="{digest(report_text)}"' in file.read(1000)


def digest(report_text: str) -> str:
    """Names what a page is drawn from: the report, the template and the code that draws."""
    made = hashlib.sha256(report_text.encode("utf-8", errors="replace"))
    for path in sorted([*FOLDER.glob("*.py"), *FOLDER.glob("*.j2")]):
        made.update(path.read_bytes())
    return made.hexdigest()


def draw(
    report: Mapping[str, Any],
    report_text: str,
    settings: Sequence[tuple[str, Any, str]],
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """The whole page.

    Args:
        report: report.json.
        report_text: its bytes as text, to tell later whether the page is still current.
        settings: dotted name, value and origin of every setting.
        metrics: for each finished step the rows of its metrics.jsonl.
    """
    environment = pages()
    ppo = {step: rows for step, rows in metrics.items() if step.split("-")[0] == "ppo"}
    return environment.get_template("report.html.j2").render(
        report=report,
        digest=digest(report_text),
        headline=table.headline(report),
        policies=table.policy_sheet(report),
        steps=timeline(report["stages"]),
        done=table.steps_done(report),
        health=table.health_sheet(metrics),
        rewards=table.reward_sheet(report),
        gate=table.gate_sheet(report),
        accuracy_charts=figures.accuracy_charts(report),
        calibration_charts=figures.calibration_charts(report),
        reward_charts=rewards.charts(report),
        reward_sheets=rewards.sheets(report),
        worst_pairs=[worst_pair(row) for row in rewards.worst(report)],
        spread_charts=judges.charts(report),
        spread_sheets=judges.sheets(report),
        wins=judges.wins(report),
        best_of_charts=figures.best_of_charts(report),
        temperature_charts=figures.temperature_charts(report),
        ppo_charts=figures.frontier_charts(ppo) + figures.ppo_charts(ppo),
        tradeoff_charts=figures.tradeoff_charts(report) + figures.scaling_charts(report),
        graph=arcs(report["stages"]),
        multi_turn=table.multi_turn_sheet(report),
        heat=heat(report.get("multi_turn", {})),
        samples=[sample(row) for row in report.get("samples", [])],
        masks=report.get("loss_masks", {}),
        loss_charts=figures.loss_charts(metrics),
        claims=claims(report.get("claims", {})),
        settings=[(name, show(value), origin) for name, value, origin in settings],
        versions=sorted(report.get("versions", {}).items()),
    )


def draw_claims(found: Mapping[str, Any], runs: Sequence[str], scaling: Mapping[str, Mapping[str, Any]] = {}) -> str:
    """A page of its own: the verdicts over several runs.

    Args:
        scaling: what safety data buy and cost, run by run.
    """
    rows = claims(found)
    counts = Counter(row["verdict"] for row in rows)
    said = {one: one if counts[one] == 1 else several for one, several in zip(VERDICTS.values(), SEVERAL, strict=True)}
    headline = ", ".join(f"{counts[one]} {words}" for one, words in said.items() if counts[one])
    charts = [chart for run, report in scaling.items() for chart in figures.scaling_charts(report, of=run)]
    return pages().get_template("claims.html.j2").render(claims=rows, runs=runs, headline=headline, charts=charts)


def pages() -> Environment:
    """The templates beside this module; whatever they are given is escaped unless it is an SVG of ours."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "duration": duration, "svg": Markup}
    return environment


def timeline(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The stages with where each one's bar begins and how long it is, in percent of all the work."""
    total = sum(stage.get("seconds", 0.0) for stage in stages) or 1.0
    rows, begin = [], 0.0
    for stage in stages:
        seconds = stage.get("seconds", 0.0)
        rows.append({**stage, "from": 100 * begin / total, "width": 100 * seconds / total})
        begin += seconds
    return rows


def heat(found: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, float]]]]:
    """The strips of the multi-turn test: name, and turn with rate for every turn measured."""
    strips = []
    for when in table.held_by(found):
        if found.get(when):
            policy = found.get(f"{when}_policy")
            turns = sorted(found[when].items(), key=lambda item: float(item[0]))
            strips.append((f"{when}: {policy}" if policy else when, turns))
    return strips


def sample(row: Mapping[str, Any]) -> dict[str, Any]:
    """One prompt with the answers of every policy, long texts cut and marked as cut."""
    prompt = row.get("prompt", [])
    turns = [prompt] if isinstance(prompt, str) else prompt
    said = [t if isinstance(t, Mapping) else {"role": "user", "content": str(t)} for t in turns]
    replies: list[dict[str, Any]] = []
    before = None
    for policy, reply in row.get("replies", {}).items():
        scores = [(name, _text(value)) for name, value in reply.items() if isinstance(value, int | float)]
        text = _cut(str(reply.get("text", "")))
        changes: list[tuple[Kind, str]] = [] if before is None else word_changes(before, text)
        replies.append({"policy": policy, "text": text, "scores": scores, "changes": changes, "same": text == before})
        before = text
    said = [{"role": str(t.get("role", "user")), "content": _cut(str(t.get("content", "")))} for t in said]
    return {"kind": row.get("kind", ""), "turns": said, "replies": replies}


def worst_pair(row: Mapping[str, Any]) -> dict[str, Any]:
    """A pair that a reward model got wrong, as a sample whose replies are its two sides."""
    replies = [
        {"policy": side, "text": _cut(str(row[side])), "scores": [("score", two_places(row[f"{side}_score"]))]}
        for side in ("chosen", "rejected")
    ]
    turns = [{"role": str(t["role"]), "content": _cut(str(t["content"]))} for t in row["prompt"]]
    rating = f"rated {row['rating']} better" if row.get("rating") else None
    kind = ", ".join(str(part) for part in (f"{row['model']} model", row.get("source"), rating) if part)
    return {"kind": kind, "turns": turns, "replies": replies}


def claims(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """The claims in their order, each with its verdict in words."""
    return [
        {
            "id": name,
            "claim": _text(claim.get("claim", "")),
            "verdict": VERDICTS.get(claim.get("holds"), str(claim.get("holds", ""))),
            "figure": _text(claim.get("figure", "")),
            "evidence": _text(claim.get("evidence", "")),
        }
        for name, claim in found.items()
    ]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return two_places(value)
    return value if isinstance(value, str) else show(value)


def _cut(text: str) -> str:
    return (
        text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} … ({len(text) - LONGEST_TEXT:,} characters cut)"
    )
