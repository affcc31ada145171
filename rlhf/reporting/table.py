"""The result in words and tables: for the terminal, for a README, and at the top of the page.

Everything is first laid out as a `Sheet`; rich, Markdown and HTML differ only in how they draw it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhf.data.types import RATINGS
from rlhf.evaluation.intervals import wilson
from rlhf.reporting.text import duration, percent, plain, two_places
from rlhf.tracking.health import examine

ABSENT = "–"
Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table: its title, the headings, and rows of text; `errors` are the intervals beside the figures, same shape."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    errors: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of a policy: where it stands in report.json, its heading and how it is written."""

    path: str
    head: str
    write: Callable[[float], str]


POLICY_COLUMNS = (
    Column("gold_quality", "gold quality", two_places),
    Column("gold_helpfulness", "gold help", two_places),
    Column("gold_facts", "gold facts", two_places),
    Column("violation_rate", "violates", percent),
    Column("false_refusal.borderline", "refuses border", percent),
    Column("false_refusal.ordinary", "refuses plain", percent),
    Column("instruction_followed", "follows instr.", percent),
    Column("reward_combined", "RM reward", two_places),
    Column("reward_p10", "RM worst tenth", two_places),
    Column("kl_to_reference", "KL nats", two_places),
    Column("eos_rate", "ends", percent),
)

WITHOUT_ORACLE = (Column("unsafe_by_reward_model", "RM unsafe", percent),)
"""What stands in where no oracle counts violations, and never beside them: the table stays narrow."""
ESTIMATED = "refusals by their words, RM unsafe by a safety score below 0.5"

GATE_SHARES = ("recall", "precision", "called")
HEADLINES = {
    "gold_quality": "gold quality",
    "violation_rate": "violations on unsafe prompts",
    "false_refusal.borderline": "refusals of harmless borderline prompts",
}


def figure(entry: Mapping[str, Any], path: str) -> float | None:
    """The number at a dotted path, or None where it is absent."""
    found: Any = entry
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def error_of(entry: Mapping[str, Any], path: str) -> tuple[float, float] | None:
    """The 95% interval of a policy's figure: `interval` holds it under the dotted name, or nested as the figure is."""
    table: Any = entry.get("interval", {})
    found = table.get(path) if isinstance(table, Mapping) else None
    for part in path.split(".") if found is None else ():
        table = table.get(part) if isinstance(table, Mapping) else None
        found = table
    return (float(found[0]), float(found[1])) if isinstance(found, Sequence) and len(found) == 2 else None


def span(bounds: Sequence[float] | None, write: Callable[[float], str] = two_places) -> str:
    """`0.35 to 0.42`, or nothing where no interval is known."""
    return f"{write(bounds[0])} to {write(bounds[1])}" if bounds else ""


def domains_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The domains a reward model was measured in: the entries that hold accuracies."""
    return {name: value for name, value in entry.items() if isinstance(value, Mapping) and value.get("accuracy")}


def interval_of(domain: Mapping[str, Any], rating: str) -> tuple[float, float] | None:
    """The 95% interval as reported, else Wilson's from the number of pairs, else none."""
    given = domain.get("interval", {}).get(rating)
    if given:
        return float(given[0]), float(given[1])
    pairs = domain.get("pairs", {}).get(rating)
    return wilson(round(domain["accuracy"][rating] * pairs), pairs) if pairs else None


def sheets(report: Report) -> list[Sheet]:
    """The tables that the report has numbers for: policies, reward models, many turns."""
    made = [policy_sheet(report), reward_sheet(report), multi_turn_sheet(report)]
    return [sheet for sheet in made if sheet is not None]


def policy_sheet(report: Report) -> Sheet | None:
    """Policies as rows, oldest first; a column that no policy has a figure for is left out."""
    policies: Mapping[str, Any] = report.get("policies", {})
    if not policies:
        return None
    known = (*POLICY_COLUMNS, *WITHOUT_ORACLE)
    columns = [c for c in known if any(figure(entry, c.path) is not None for entry in policies.values())]
    rows, errors = [], []
    for name, entry in policies.items():
        figures = [figure(entry, c.path) for c in columns]
        bounds = [error_of(entry, c.path) for c in columns]
        rows.append((name, *(ABSENT if v is None else c.write(v) for c, v in zip(columns, figures, strict=True))))
        errors.append(("", *(span(b, c.write) for c, b in zip(columns, bounds, strict=True))))
    counts = sorted({int(entry["n"]) for entry in policies.values() if isinstance(entry.get("n"), int)})
    n = f"n = {counts[0]:,}" if len(counts) == 1 else f"n = {counts[0]:,} to {counts[-1]:,}" if counts else ""
    notes = [f"{n} prompts each"] if n else []
    if any("counted" in entry for entry in policies.values()):
        notes.append(ESTIMATED)
    return Sheet(
        "Policies on held-out prompts",
        ("policy", *(c.head for c in columns)),
        tuple(rows),
        "; ".join(notes),
        tuple(errors) if any(text for row in errors for text in row) else (),
    )


def reward_sheet(report: Report) -> Sheet | None:
    """Accuracy of each reward model by rating, a row for every domain it was measured in."""
    rows, errors = [], []
    for model, entry in report.get("reward_models", {}).items():
        for domain, found in domains_of(entry).items():
            pairs = found.get("pairs", {}).get("all")
            accuracy = found["accuracy"]
            buckets = (*RATINGS, "all")
            bounds = [interval_of(found, b) if b in accuracy else None for b in buckets]
            figures = (two_places(accuracy[b]) if b in accuracy else ABSENT for b in buckets)
            rows.append((f"{model} on {domain}", *figures, f"{pairs:,}" if pairs else ABSENT))
            errors.append(("", *map(span, bounds), ""))
    if not rows:
        return None
    head = ("model on pairs", "signif.", "better", "slightly", "neglig.", "all", "pairs")
    return Sheet("Reward model accuracy by rating", head, tuple(rows), "0.50 is chance", tuple(errors))


def gate_sheet(report: Report) -> Sheet | None:
    """How well a score below a threshold finds unsafe answers: the paper's two, and the one of its precision (B5, B12).

    Recall alone says little: who calls every answer unsafe finds all of them. So what is called unsafe stands beside.
    """
    rows, errors = [], []
    for model, entry in report.get("reward_models", {}).items():
        for why, point in entry.get("gates", {}).items():
            shares = [point[share] for share in GATE_SHARES]
            rows.append(
                (model, f"{point['threshold']:.2f}: {why}", *(ABSENT if v is None else percent(v) for v in shares))
            )
            errors.append(("", "", *(span(point["interval"].get(share), percent) for share in GATE_SHARES)))
    head = ("model", "threshold", "unsafe found (recall)", "found is unsafe (precision)", "called unsafe")
    return Sheet("Unsafe answers found by the score", head, tuple(rows), "", tuple(errors)) if rows else None


def multi_turn_sheet(report: Report) -> Sheet | None:
    """The share of dialogues that still follow an instruction given once, by turn (Table 30)."""
    found = report.get("multi_turn", {})
    asked = {"": "", "changed_": f", changed at {found.get('changed_at')}", "unseen_": ", never trained"}
    held = held_by(found)
    rates = {(when, how): found[how + when] for how in asked for when in held if found.get(how + when)}
    if not rates:
        return None
    turns = sorted({turn for by_turn in rates.values() for turn in by_turn}, key=float)
    rows = []
    for (when, how), by_turn in rates.items():
        policy = found.get(f"{when}_policy")
        name = (f"{when} ({policy})" if policy else when) + asked[how]
        rows.append((name, *(percent(by_turn[t]) if t in by_turn else ABSENT for t in turns)))
    n = f"{found['n']:,} dialogues, " if found.get("n") else ""
    whose = "" if "final" in held else "Ghost Attention before and after; "
    rules = f"; {found['instructions']} instructions, which rules check" if found.get("instructions") else ""
    note = f"{n}{whose}instruction given in the first turn only{rules}"
    return Sheet("Instruction still followed at turn", ("policy", *turns), tuple(rows), note)


def held_by(multi_turn: Mapping[str, Any]) -> list[str]:
    """Whose dialogues are shown: before and after Ghost Attention; of a policy by itself the final ones."""
    return [when for when in ("before", "after") if multi_turn.get(when)] or ["final"]


def headline(report: Report) -> str:
    """The result in one or two sentences, from the numbers alone."""
    policies: Mapping[str, Any] = report.get("policies", {})
    if not policies:
        return f"No policy has been measured yet: {steps_done(report)} of {len(report['stages'])} steps are done."
    first = "sft" if "sft" in policies else next(iter(policies))
    last = list(policies)[-1]
    changes = [
        f"{HEADLINES[column.path]} {_change(before, after, column.write)}"
        f"{_doubt(policies[first], policies[last], column.path)}"
        for column in POLICY_COLUMNS
        if column.path in HEADLINES
        and (before := figure(policies[first], column.path)) is not None
        and (after := figure(policies[last], column.path)) is not None
    ]
    if first == last or not changes:
        return f"{len(policies)} policies were measured on held-out prompts."
    text = f"From {first} to {last}, " + ", ".join(changes[:-1]) + (" and " if changes[:-1] else "") + changes[-1] + "."
    return text + _remembered(report)


def claims_by_verdict(report: Report) -> list[tuple[str, list[str]]]:
    """The claims' ids by verdict, as the end of 'claims that ...'."""
    claims: Mapping[str, Any] = report.get("claims", {})
    verdicts = (("hold", True), ("do not hold", False), ("this run alone cannot test", "untestable"))
    found = [(words, [name for name, c in claims.items() if c.get("holds") == value]) for words, value in verdicts]
    return [(words, names) for words, names in found if names]


def health_sheet(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> Sheet | None:
    """What the rules of health find in the metrics of finished steps, with the cure."""
    found = [(step, finding) for step, rows in metrics.items() for finding in examine(rows)]
    rows = tuple((f"{step}: {f.metric}", f.sign, f.cure) for step, f in found)
    return Sheet("Health", ("metric", "sign", "what helps"), rows, "at the end of the step") if rows else None


def steps_done(report: Report) -> int:
    """How many steps of the recipe have left their artefact."""
    return sum(stage["status"] == "done" for stage in report["stages"])


def summary(report: Report, *, next_command: str | None = None) -> RenderableType:
    """What a run ends with on the terminal: the tables, the claims, the time, and what to type next."""
    parts: list[RenderableType] = [Text(plain(headline(report)), style="bold"), Text()]
    for sheet in sheets(report):
        parts += [_rich(sheet), *([Text(plain(sheet.note), style="dim")] if sheet.note else []), Text()]
    for words, names in claims_by_verdict(report):
        parts.append(Text(f"claims that {words}: {plain(' '.join(names))}"))
    done, total = steps_done(report), len(report["stages"])
    parts.append(Text(f"{done} of {total} steps done, {duration(report['total_seconds'])} of work"))
    usual = f"rlhf report run={report['run']} format=markdown" if done == total else f"rlhf status run={report['run']}"
    parts.append(Text("next: ").append(plain(next_command or usual), style="bold"))
    return Group(*parts)


def markdown(report: Report) -> str:
    """The same tables as Markdown, for a README."""
    blocks = [_escaped(headline(report))]
    for sheet in sheets(report):
        title = f"**{sheet.title}**" + (f" ({_escaped(sheet.note)})" if sheet.note else "")
        rule = "| --- |" + " ---: |" * (len(sheet.head) - 1)
        head, *body = ("| " + " | ".join(map(_escaped, row)) + " |" for row in (sheet.head, *sheet.rows))
        blocks.append("\n".join([title, "", head, rule, *body]))
    verdicts = [f"{words}: {', '.join(names)}" for words, names in claims_by_verdict(report)]
    if verdicts:
        blocks.append(_escaped(f"Claims that {'; '.join(verdicts)}."))
    return "\n\n".join(blocks) + "\n"


NARROW = {"quality": "qual.", "violates": "viol.", "refuses": "refus.", "follows": "foll."}


def _rich(sheet: Sheet) -> Table:
    crowded = len(sheet.head) > 8  # eleven figures fit into 80 columns with narrow headings on two lines
    table = Table(
        title=Text(sheet.title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0 if crowded else 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for i, head in enumerate(sheet.head):
        table.add_column(
            Text("\n".join(NARROW.get(word, word) for word in plain(head).split()) if crowded else plain(head)),
            justify="right" if i else "left",
            no_wrap=i == 0,
            overflow="fold",
        )
    for row in sheet.rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    return table


def _change(before: float, after: float, write: Callable[[float], str]) -> str:
    a, b = write(before), write(after)
    if a == b:
        return f"stayed at {a}"
    return f"{'rose' if after > before else 'fell'} from {a} to {b}"


def _doubt(before: Mapping[str, Any], after: Mapping[str, Any], path: str) -> str:
    """Says so where the two 95% intervals overlap."""
    a, b = error_of(before, path), error_of(after, path)
    return " (within the error)" if a and b and a[0] <= b[1] and b[0] <= a[1] else ""


def _remembered(report: Report) -> str:
    """The last turn of the multi-turn test, before and after Ghost Attention."""
    found = report.get("multi_turn", {})
    before, after = found.get("before") or {}, found.get("after") or {}
    shared = sorted(set(before) & set(after), key=float)
    if not shared:
        return ""
    turn = shared[-1]
    return (
        f" At turn {turn} an instruction given once is followed in {percent(after[turn])} of the dialogues after"
        f" Ghost Attention and in {percent(before[turn])} before it."
    )


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", " ".join(plain(text).split()))
