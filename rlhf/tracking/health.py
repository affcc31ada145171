"""What the metrics of a step say about its health: each rule with the cause it points to and the cure.

Torch-free. A rule looks at the course of one metric so far and says nothing where the metric was not logged. The same
rules watch a step while it runs, examine one that is finished, and are what `rlhf metrics` calls healthy.
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
    limit: float
    """Between healthy and not."""
    healthy: str
    """Said with `{limit}` filled in."""
    wrong: Callable[[Sequence[float], float], bool]
    """Whether these values, with this limit, are a sign of trouble."""
    sign: str
    """Said with `{first}`, `{last}`, `{low}` and `{high}` filled in."""
    cure: str
    while_rising: str = ""
    """Another metric, logged beside this one, that has to have risen since this one was at its highest."""

    def reads(self, name: str) -> bool:
        """Whether it looks at the metric of this name."""
        return name == self.metric or (self.metric.startswith("/") and name.endswith(self.metric))


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
        0.5,
        "{limit:.0%} at least",
        lambda xs, limit: xs[-1] < limit,
        "only {last:.0%} of the answers end by themselves",
        "is the end of an answer in the loss? rlhf check data; or raise max_new_tokens",
    ),
    Rule(
        "kl_below_zero",
        "objective/kl",
        -0.1,
        "not below {limit:g}",
        lambda xs, limit: xs[-1] < limit,
        "KL is {last:.2g}, below zero beyond its noise",
        "policy and reference are sampled or scored in different ways: same dtype, dropout off, same temperature",
    ),
    Rule(
        "kl_far",
        "objective/kl",
        30,
        "{limit:g} at most",
        lambda xs, limit: xs[-1] > limit,
        "KL has grown to {last:.0f} nats an answer",
        "raise ppo.kl_coef, or lower ppo.learning_rate",
    ),
    Rule(
        "drift",
        "val/logprob_drift",
        0.5,
        "{limit:g} at most",
        lambda xs, limit: max(xs) > limit,
        "log-probabilities of sampling and training differ by up to {high:.2g}",
        "sample in the dtype that is trained: model.dtype=float32",
    ),
    Rule(
        "clipping",
        "policy/clipfrac_avg",
        0.3,
        "{limit:g} at most",
        lambda xs, limit: _mean(xs[-10:]) > limit,
        "the clip binds on many tokens",
        "lower ppo.learning_rate, or take fewer steps from a batch",
    ),
    Rule(
        "critic",
        "value/explained_variance",
        0,
        "above {limit:g}",
        lambda xs, limit: len(xs) >= 20 and _mean(xs[-10:]) < limit,
        "the critic is worse than a constant",
        "raise ppo.critic_learning_rate, or give it more of ppo.critic_warmup",
    ),
    Rule(
        "entropy",
        "objective/entropy",
        0.1,
        "above {limit:g} of what it was at first",
        lambda xs, limit: len(xs) >= 20 and _mean(xs[-5:]) < limit * _mean(xs[:5]),
        "entropy fell from {first:.2g} to {last:.2g} nats a token: the policy says one thing only",
        "raise ppo.kl_coef, or stop earlier with ppo.patience",
    ),
    Rule(
        "longer",
        "gen/length",
        2,
        "at most {limit:g} times what it was at first",
        lambda xs, limit: len(xs) >= 20 and _mean(xs[-5:]) > limit * _mean(xs[:5]),
        "answers grew from {first:.0f} to {last:.0f} tokens: length may be what is rewarded",
        "see reward against length in the report; raise ppo.kl_coef",
    ),
    Rule(
        "ratio",
        "val/ratio_first",
        0.01,
        "1, give or take {limit:g}",
        lambda xs, limit: abs(xs[-1] - 1) > limit,
        "before the first step of a batch the ratio is {last:.3f}, not 1",
        "old and new log-probabilities are not of the same model: same dtype, dropout off, same temperature",
    ),
    Rule(
        "length_pays",
        "reward/length_slope",
        0.7,
        "{limit:g} at most",
        lambda xs, limit: len(xs) >= 10 and _mean(xs[-10:]) > limit,
        "an answer one deviation longer scores {last:.2f} deviations higher",
        "the reward models may have learnt length: compare them with the length rule in the report",
    ),
    Rule(
        "constant_scores",
        "reward/std",
        1e-6,
        "above {limit:g}",
        lambda xs, limit: xs[-1] < limit,
        "all answers of a batch have the same score, from which nothing can be learnt",
        "look at samples.jsonl: are all answers the same, or cut before they say anything?",
    ),
    Rule(
        "judge_disagrees",
        "heldout/gold_quality",
        0.05,
        "not {limit:g} below its best while the reward rises",
        lambda xs, limit: xs[-1] < max(xs) - limit,
        "the held-out judge has fallen from {high:.2f} to {last:.2f} while the trained reward rose",
        "the reward is being gamed: raise ppo.kl_coef, lower ppo.max_kl, or train the reward models on newer answers",
        while_rising="heldout/reward_combined",
    ),
    Rule(
        "loss_rises",
        "/loss",
        1.5,
        "not {limit:g} times its lowest again",
        lambda xs, limit: (
            len(xs) >= 20 and _mean(xs[-5:]) > limit * min(_mean(xs[i : i + 5]) for i in range(len(xs) - 4)) + 0.1
        ),
        "the loss has risen again to {last:.2g} from {low:.2g}",
        "lower the learning rate, or train for fewer epochs",
    ),
)


BESIDE = {rule.while_rising for rule in RULES}


def is_watched(name: str) -> bool:
    """Whether a rule looks at this metric."""
    return any(rule.reads(name) for rule in RULES)


def healthy(name: str) -> str:
    """What the rules about a metric ask of it, in words; empty where there is none."""
    return ", ".join(rule.healthy.format(limit=rule.limit) for rule in RULES if rule.reads(name))


def examine(rows: Sequence[Mapping[str, float]]) -> list[Finding]:
    """The rules that the metrics of one step meet."""
    found = []
    names = list(dict.fromkeys(name for row in rows for name in row))
    for rule in RULES:
        for name in names:
            if not rule.reads(name):
                continue
            both = [row for row in rows if name in row and (not rule.while_rising or rule.while_rising in row)]
            xs = [float(row[name]) for row in both]
            if xs and rule.wrong(xs, rule.limit) and (not rule.while_rising or _risen(both, name, rule.while_rising)):
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
        self.rows.append({name: value for name, value in row.items() if name in BESIDE or is_watched(name)})
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
