"""What the metrics of a step say about its health: each rule with the cause it points to and the cure.

Torch-free. A rule looks at the course of one metric so far and says nothing where the metric was not logged. The same
rules watch a step while it runs, and examine one that is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import correlation
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """One sign of trouble: where it shows, when, and what then helps."""

    name: str
    """What the alarm is called: `health/NAME` in the metrics."""
    metric: str
    """The metric's name, or the end of it."""
    wrong: Callable[[Sequence[float]], bool]
    sign: str
    """Said with `{first}`, `{last}`, `{low}` and `{high}` filled in."""
    cure: str
    while_rising: str = ""
    """Another metric, logged beside this one, that has to have risen since this one was at its highest."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that was met."""

    name: str
    metric: str
    sign: str
    cure: str


RULES = (
    Rule(
        "endless",
        "gen/eos_rate",
        lambda xs: xs[-1] < 0.5,
        "only {last:.0%} of the answers end by themselves",
        "is the end of an answer in the loss? rlhf check data; or raise max_new_tokens",
    ),
    Rule(
        "kl_below_zero",
        "objective/kl",
        lambda xs: xs[-1] < -0.1,
        "KL is {last:.2g}, below zero beyond its noise",
        "policy and reference are sampled or scored in different ways: same dtype, dropout off, same temperature",
    ),
    Rule(
        "kl_far",
        "objective/kl",
        lambda xs: xs[-1] > 30,
        "KL has grown to {last:.0f} nats an answer",
        "raise ppo.kl_coef, or lower ppo.learning_rate",
    ),
    Rule(
        "drift",
        "val/logprob_drift",
        lambda xs: max(xs) > 0.5,
        "log-probabilities of sampling and training differ by up to {high:.2g}",
        "sample in the dtype that is trained: model.dtype=float32",
    ),
    Rule(
        "clipping",
        "policy/clipfrac_avg",
        lambda xs: _mean(xs[-10:]) > 0.3,
        "the clip binds on many tokens",
        "lower ppo.learning_rate, or take fewer steps from a batch",
    ),
    Rule(
        "critic",
        "value/explained_variance",
        lambda xs: len(xs) >= 20 and _mean(xs[-10:]) < 0,
        "the critic is worse than a constant",
        "raise ppo.critic_learning_rate, or give it more of ppo.critic_warmup",
    ),
    Rule(
        "entropy",
        "objective/entropy",
        lambda xs: len(xs) >= 20 and _mean(xs[-5:]) < 0.1 * _mean(xs[:5]),
        "entropy fell from {first:.2g} to {last:.2g} nats a token: the policy says one thing only",
        "raise ppo.kl_coef, or stop earlier with ppo.patience",
    ),
    Rule(
        "longer",
        "gen/length",
        lambda xs: len(xs) >= 20 and _mean(xs[-5:]) > 2 * _mean(xs[:5]),
        "answers grew from {first:.0f} to {last:.0f} tokens: length may be what is rewarded",
        "see reward against length in the report; raise ppo.kl_coef",
    ),
    Rule(
        "ratio",
        "val/ratio_first",
        lambda xs: abs(xs[-1] - 1) > 0.01,
        "before the first step of a batch the ratio is {last:.3f}, not 1",
        "old and new log-probabilities are not of the same model: same dtype, dropout off, same temperature",
    ),
    Rule(
        "length_pays",
        "reward/length_slope",
        lambda xs: len(xs) >= 10 and _mean(xs[-10:]) > 0.7,
        "an answer one deviation longer scores {last:.2f} deviations higher",
        "the reward models may have learnt length: compare them with the length rule in the report",
    ),
    Rule(
        "constant_scores",
        "reward/std",
        lambda xs: xs[-1] < 1e-6,
        "all answers of a batch have the same score, from which nothing can be learnt",
        "look at samples.jsonl: are all answers the same, or cut before they say anything?",
    ),
    Rule(
        "judge_disagrees",
        "heldout/gold_quality",
        lambda xs: xs[-1] < max(xs) - 0.05,
        "the held-out judge has fallen from {high:.2f} to {last:.2f} while the trained reward rose",
        "the reward is being gamed: raise ppo.kl_coef, lower ppo.max_kl, or train the reward models on newer answers",
        while_rising="heldout/reward_combined",
    ),
    Rule(
        "loss_rises",
        "/loss",
        lambda xs: len(xs) >= 20 and _mean(xs[-5:]) > 1.5 * min(_mean(xs[i : i + 5]) for i in range(len(xs) - 4)) + 0.1,
        "the loss has risen again to {last:.2g} from {low:.2g}",
        "lower the learning rate, or train for fewer epochs",
    ),
)


def examine(rows: Sequence[Mapping[str, float]]) -> list[Finding]:
    """The rules that the metrics of one step meet."""
    found = []
    names = list(dict.fromkeys(name for row in rows for name in row))
    for rule in RULES:
        for name in names:
            if name != rule.metric and not (rule.metric.startswith("/") and name.endswith(rule.metric)):
                continue
            both = [row for row in rows if name in row and (not rule.while_rising or rule.while_rising in row)]
            xs = [float(row[name]) for row in both]
            if xs and rule.wrong(xs) and (not rule.while_rising or _risen(both, name, rule.while_rising)):
                said = rule.sign.format(first=xs[0], last=xs[-1], low=min(xs), high=max(xs))
                found.append(Finding(rule.name, name, said, rule.cure))
    return found


@dataclass
class Watch:
    """The rules, over a step that is running: each alarm is said once, and stays in the metrics while it lasts."""

    say: Callable[[str], None]
    rows: list[dict[str, float]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def look(self, row: Mapping[str, float]) -> dict[str, float]:
        """The alarms that these metrics and all before them give: `health/alarms`, and 1 for each by its name."""
        self.rows.append(dict(row))
        findings = examine(self.rows)
        for finding in findings:
            if finding.name not in self.said:
                self.said.append(finding.name)
                self.say(f"health/{finding.name}: {finding.sign}; {finding.cure}")
        return {"health/alarms": float(len(findings)), **{f"health/{finding.name}": 1.0 for finding in findings}}

    def state_dict(self) -> dict[str, Any]:
        """What a killed run goes on with."""
        return {"rows": self.rows, "said": self.said}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.rows, self.said = list(state_dict["rows"]), list(state_dict["said"])


def length_slope(lengths: Sequence[float], scores: Sequence[float]) -> float:
    """By how many deviations the score rises with one deviation of length: their correlation, 0 if one is constant."""
    if len(lengths) != len(scores) or len(lengths) < 2:
        raise ValueError(f"as many scores as lengths are needed, two at least: {len(scores)} and {len(lengths)}")
    if len(set(lengths)) == 1 or len(set(scores)) == 1:
        return 0.0
    return correlation(lengths, scores)


def _risen(rows: Sequence[Mapping[str, float]], name: str, other: str) -> bool:
    best = max(rows, key=lambda row: row[name])
    return rows[-1][other] > best[other]


def _mean(xs: Sequence[float]) -> float:
    return sum(xs) / len(xs)
