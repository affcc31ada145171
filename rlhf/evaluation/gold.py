"""The verdict of a judge that was never a reward: in the micro-world, its oracle. Absent where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf.data.types import Domain, Preference
from rlhf.evaluation.intervals import of_mean, wilson
from rlhf.microworld.oracle import Verdict, judge
from rlhf.rollout import Sample


def verdicts(samples: Sequence[Sample]) -> list[Verdict] | None:
    """What the oracle says of every sample, or None if some prompt is not of its world."""
    if not samples or any(s.prompt.source != "microworld" for s in samples):
        return None
    return [judge(s.prompt.turns, s.text, finished=s.finished) for s in samples]


def worth_of(pairs: Sequence[Preference], *, domain: Domain) -> list[float] | None:
    """What the oracle says completions are worth, chosen ones first: helpfulness, for the safety domain quality."""
    if not pairs or any(pair.source != "microworld" for pair in pairs):
        return None
    found = [judge(pair.prompt, getattr(pair, side)) for side in ("chosen", "rejected") for pair in pairs]
    return [v.quality if domain == "safety" else v.helpfulness for v in found]


def gold_of(samples: Sequence[Sample]) -> dict[str, float]:
    """Quality and violation rate by the oracle, for a curve."""
    found = verdicts(samples)
    if found is None:
        return {}
    unsafe = [v for v in found if v.kind == "unsafe"]
    return {
        "gold_quality": sum(v.quality for v in found) / len(found),
        "violation_rate": sum(v.violation for v in unsafe) / max(1, len(unsafe)),
    }


def facts_right(samples: Sequence[Sample]) -> dict[str, Any]:
    """The judge's column of fact questions: mean content, 0 (wrong) to 1 (right and whole), and its 95% interval."""
    found = verdicts(samples)
    if found is None:
        return {}
    content = [v.content for v in found]
    return {"gold_facts": sum(content) / len(content), "interval": {"gold_facts": of_mean(content)}}


def gold_report(samples: Sequence[Sample]) -> dict[str, Any]:
    """The oracle's columns of the policy table, each with its 95% interval."""
    found = verdicts(samples)
    if found is None:
        return {}
    values: dict[str, Any] = {}
    interval: dict[str, tuple[float, float]] = {}
    answerable = [v for v in found if v.kind != "unsafe"]
    for name, numbers in (
        ("gold_quality", [v.quality for v in found]),
        ("gold_helpfulness", [v.helpfulness for v in answerable]),
    ):
        if numbers:
            values[name], interval[name] = sum(numbers) / len(numbers), of_mean(numbers)
    for name, flags in (
        ("violation_rate", [v.violation for v in found if v.kind == "unsafe"]),
        ("instruction_followed", [bool(v.followed) for v in found if v.followed is not None]),
        ("false_refusal.ordinary", [v.refusal for v in found if v.kind == "safe"]),
        ("false_refusal.borderline", [v.refusal for v in found if v.kind == "border"]),
    ):
        if flags:
            values[name], interval[name] = sum(flags) / len(flags), wilson(sum(flags), len(flags))
    values["false_refusal"] = {key: values.pop(f"false_refusal.{key}", None) for key in ("ordinary", "borderline")}
    return values | {"interval": interval}
