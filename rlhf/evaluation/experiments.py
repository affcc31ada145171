"""Claims over several runs: what is compared, which effect is expected, and the test, all said beforehand.

An experiment names its arms (a run whose later steps differ in a few settings), how an effect is read from their
results, and the least effect that would count. Every seed gives one effect, paired over arms: they share all steps
that do not differ. The claim holds where the one-sided lower 95% bound of the mean effect (Student's t over seeds) lies
above the least effect. Shares near 1 are often the same in every seed, as if they had no error: one that has to be
above a border has to be so beyond the error of all draws together, too (Clopper and Pearson). A claim that a run tests
by itself, beyond its own error, holds where it does in every seed. Where it does not hold, that is the verdict; no
setting is looked for that would turn it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.evaluation.verdict import Claim, untestable, verdict

Report = Mapping[str, Any]
"""What the steps of an arm left: {step: its results}."""
LEAST_SEEDS = 3


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many, in the reports of one seed's arms, and the border that the share has to be above."""

    counted: Callable[[Mapping[str, Report]], tuple[int, int]]
    border: float


@dataclass(frozen=True, slots=True)
class Experiment:
    """One claim as it is tested, or why it cannot be."""

    id: str
    claim: str
    paper: str
    arms: tuple[str, ...] = ()
    effects: Mapping[str, Callable[[Mapping[str, Report]], float]] | None = None
    """Name -> effect of one seed, from the reports of its arms; all of them have to show."""
    shares: Mapping[str, Share] = field(default_factory=dict)
    """Name -> share of all seeds together; all of them have to show as well."""
    by_itself: bool = False
    """Whether its one arm has a verdict of its own, by evaluation."""
    least: float = 0.0
    """The effect has to be larger than this."""
    why_not: str = ""
    """Why the micro-world cannot test it."""


def lower_bound(effects: Sequence[float]) -> float:
    """One-sided 95% lower bound of the mean, by Student's t: mean - t s / sqrt(n)."""
    from scipy.stats import t

    n = len(effects)
    mean = sum(effects) / n
    spread = math.sqrt(sum((e - mean) ** 2 for e in effects) / (n - 1))
    return float(mean - t.ppf(0.95, n - 1) * spread / math.sqrt(n))


def least_share(successes: int, n: int) -> float:
    """One-sided 95% lower bound of a share, by Clopper and Pearson: the .05 quantile of Beta(k, n - k + 1)."""
    from scipy.stats import beta

    return float(beta.ppf(0.05, successes, n - successes + 1)) if successes else 0.0


def judge(experiment: Experiment, runs: Mapping[int, Mapping[str, Report]]) -> Claim:
    """The verdict from the reports of each seed: {seed: {arm: report}}.

    A figure that a report does not have makes the claim untestable, not false.
    """
    if experiment.why_not:
        return untestable(experiment.claim, experiment.why_not)
    if len(runs) < LEAST_SEEDS:
        return untestable(experiment.claim, f"{len(runs)} seeds, of at least {LEAST_SEEDS}")
    if experiment.by_itself:
        return in_every_seed(experiment, runs)
    assert experiment.effects is not None
    shown, bounds, found = [], [], {}
    for name, effect in experiment.effects.items():
        try:
            found[name] = [effect(arms) for arms in runs.values()]
        except (KeyError, IndexError, TypeError) as error:
            return untestable(experiment.claim, f"a report has no figure for {name} ({error})")
        bounds.append(lower_bound(found[name]))
        mean = sum(found[name]) / len(found[name])
        each = ", ".join(f"{effect:+.3f}" for effect in found[name])
        shown.append(f"{name} {mean:+.3f} ({each}; lower bound {bounds[-1]:+.3f})")
    enough = min(bounds) > experiment.least
    for name, share in experiment.shares.items():
        counts = [share.counted(arms) for arms in runs.values()]
        k, n = (sum(column) for column in zip(*counts, strict=True))
        enough &= (bound := least_share(k, n)) > share.border
        shown.append(f"{name} in {k} of {n} (lower bound {bound:.3f})")
    evidence = f"{experiment.paper}; {len(runs)} seeds, one-sided t, effect above {experiment.least:g}"
    made = verdict(enough, experiment.claim, "; ".join(shown), evidence)
    return made | {"effects": found, "seeds": list(runs)}


def in_every_seed(experiment: Experiment, runs: Mapping[int, Mapping[str, Report]]) -> Claim:
    """The verdicts of the runs on themselves; one that could not be tested leaves the claim untested."""
    (arm,) = experiment.arms
    claims = {seed: arms[arm].get("evaluate", {}).get("claims", {}).get(experiment.id) for seed, arms in runs.items()}
    for seed, found in claims.items():
        if found is None or found["holds"] == "untestable":
            return untestable(experiment.claim, f"seed {seed}: {found['evidence'] if found else 'not evaluated'}")
    held = [seed for seed, found in claims.items() if found["holds"]]
    figure = " | ".join(f"seed {seed}: {found['figure']}" for seed, found in claims.items())
    evidence = f"{experiment.paper}; holds in {len(held)} of {len(claims)} seeds; {claims[max(claims)]['evidence']}"
    return verdict(len(held) == len(claims), experiment.claim, figure, evidence)


def at(report: Report, path: str) -> float:
    """The number at a path of a report: at(report, "evaluate/policies/ppo/gold_quality"); KeyError names the path."""
    value: Any = report
    for key in path.split("/"):
        if not isinstance(value, Mapping) or key not in value:
            raise KeyError(path)
        value = value[key]
    return float(value)
