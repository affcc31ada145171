"""What the metrics of a finished step say about its health: each rule with the cause it points to and the cure.

Torch-free. A rule looks at the whole course of one metric and says nothing where the metric was not logged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """One sign of trouble: where it shows, when, and what then helps."""

    metric: str
    """The metric's name, or the end of it."""
    wrong: Callable[[Sequence[float]], bool]
    sign: str
    """Said with `{first}`, `{last}`, `{low}` and `{high}` filled in."""
    cure: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that was met."""

    metric: str
    sign: str
    cure: str


RULES = (
    Rule(
        "gen/eos_rate",
        lambda xs: xs[-1] < 0.5,
        "only {last:.0%} of the answers end by themselves",
        "is the end of an answer in the loss? rlhf check data; or raise max_new_tokens",
    ),
    Rule(
        "objective/kl",
        lambda xs: xs[-1] < -0.1,
        "KL is {last:.2g}, below zero beyond its noise",
        "policy and reference are sampled or scored in different ways: same dtype, dropout off, same temperature",
    ),
    Rule(
        "objective/kl",
        lambda xs: xs[-1] > 30,
        "KL has grown to {last:.0f} nats an answer",
        "raise ppo.kl_coef, or lower ppo.learning_rate",
    ),
    Rule(
        "val/logprob_drift",
        lambda xs: max(xs) > 0.5,
        "log-probabilities of sampling and training differ by up to {high:.2g}",
        "sample in the dtype that is trained: model.dtype=float32",
    ),
    Rule(
        "policy/clipfrac_avg",
        lambda xs: _mean(xs[-10:]) > 0.3,
        "the clip binds on many tokens",
        "lower ppo.learning_rate, or take fewer steps from a batch",
    ),
    Rule(
        "value/explained_variance",
        lambda xs: len(xs) >= 20 and _mean(xs[-10:]) < 0,
        "the critic is worse than a constant",
        "raise ppo.critic_learning_rate, or give it more of ppo.critic_warmup",
    ),
    Rule(
        "objective/entropy",
        lambda xs: len(xs) >= 20 and _mean(xs[-5:]) < 0.1 * _mean(xs[:5]),
        "entropy fell from {first:.2g} to {last:.2g} nats a token: the policy says one thing only",
        "raise ppo.kl_coef, or stop earlier with ppo.patience",
    ),
    Rule(
        "gen/length",
        lambda xs: len(xs) >= 20 and _mean(xs[-5:]) > 2 * _mean(xs[:5]),
        "answers grew from {first:.0f} to {last:.0f} tokens: length may be what is rewarded",
        "see reward against length in the report; raise ppo.kl_coef",
    ),
    Rule(
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
            xs = [float(row[name]) for row in rows if name in row]
            if xs and rule.wrong(xs):
                said = rule.sign.format(first=xs[0], last=xs[-1], low=min(xs), high=max(xs))
                found.append(Finding(name, said, rule.cure))
    return found


def _mean(xs: Sequence[float]) -> float:
    return sum(xs) / len(xs)
