"""The dictionary of metrics: what each name in metrics.jsonl means, and what is healthy. TRL's names where it has one.

Limits are those of the rules of health, where a rule looks at the metric; here stands only which way it goes.

`*` stands for what is being trained: sft, rejection, gatt, helpfulness, safety, pretrain, extend.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from rlhf.tracking.health import healthy as limits


@dataclass(frozen=True, slots=True)
class Metric:
    """One name, or a pattern of names."""

    name: str
    unit: str
    meaning: str
    course: str
    """Which way it goes in a run that does well."""

    @property
    def healthy(self) -> str:
        """The limits of its rules, and its course."""
        return "; ".join(part for part in (limits(self.name), self.course) if part)


METRICS = (
    Metric("reward/helpfulness", "logits", "mean score of the helpfulness model", "rises"),
    Metric("reward/safety", "logits", "mean score of the safety model", "rises, or stays"),
    Metric("reward/combined", "logits", "mean of the piecewise combination, not whitened (eq. 4)", "rises"),
    Metric("*_histogram", "logits", "the same score of every answer, in 30 bins", "one hump, moves right"),
    Metric("reward/std", "logits", "deviation of the combined score within a batch", ""),
    Metric("reward/length_slope", "", "deviations of score that go with one of length", "near 0"),
    Metric("reward/multiplier", "", "price of a unit of cost, with ppo.combine=lagrangian", "settles"),
    Metric("heldout/reward_combined", "logits", "the same on held-out prompts; what early stopping looks at", "rises"),
    Metric("heldout/kl", "nats an answer", "exact KL to the reference on held-out prompts", "below ppo.max_kl"),
    Metric(
        "heldout/*", "share", "what the gold judge says of held-out answers, where there is one", "rises with reward"
    ),
    Metric("objective/kl", "nats an answer", "KL to the reference on the batch, estimated", "grows from 0"),
    Metric("objective/entropy", "nats a token", "entropy of the policy", "falls slowly"),
    Metric("objective/return", "whitened reward", "mean return", "near 0"),
    Metric("policy/clipfrac_avg", "share", "tokens on which the clip binds", ""),
    Metric("policy/approxkl_avg", "nats a token", "how far one update moved the policy", "below 0.1"),
    Metric("val/ratio", "", "mean of new over old probability", "near 1"),
    Metric("val/ratio_first", "", "the same on the first mini-batch, before a step was made", ""),
    Metric("val/padding", "share", "of what forwards compute, padding", "below 0.1"),
    Metric("val/logprob_drift", "nats", "sampling against training, the largest difference", "rounding"),
    Metric("value/explained_variance", "share", "of the returns by the critic; 1 is perfect", "rises"),
    Metric("loss/policy_avg", "", "PPO's clipped loss", "near 0"),
    Metric("loss/value_avg", "", "the critic's loss", "falls"),
    Metric("gen/eos_rate", "share", "answers that end by themselves", "rises"),
    Metric("gen/length", "tokens", "mean length of an answer", "steady"),
    Metric("pool/entries", "samples", "rejection samples of all rounds", "grows by the round"),
    Metric("pool/prompts", "prompts", "prompts they answer", "grows by the round"),
    Metric("health/alarms", "alarms", "rules of health that are met now", "0"),
    Metric("health/*", "", "1 while this rule of health is met: rlhf doctor run", "absent"),
    Metric("*/loss", "nats a token", "mean loss of the batch; of reward models, ranking plus its other terms", "falls"),
    Metric("*/loss/ranking", "", "ranking loss with margin (eq. 2)", "falls"),
    Metric("*/loss/safety", "", "auxiliary safety loss (Table 29), labelled pairs only", "falls"),
    Metric("*/accuracy", "share", "pairs of the batch in the right order", "above 0.5, rises"),
    Metric("*/mean_score", "logits", "mean score of both sides", "near 0"),
    Metric("*/score_gap", "logits", "chosen minus rejected", "rises"),
    Metric("*/grad_norm", "", "norm of the gradient before it is clipped", "steady"),
    Metric("*/learning_rate", "", "of the step", "as scheduled"),
    Metric("*/entropy", "nats a token", "of the predictions", "falls with the loss"),
    Metric("*/mean_token_accuracy", "share", "tokens predicted right", "rises"),
    Metric("eval/*", "", "of a policy on held-out prompts; step n is the n-th policy of the result table", "see there"),
    Metric("*/train/*", "share", "pairs with this rating, of those to learn from", "none is 0"),
    Metric("*/test/*", "share", "pairs with this rating, of those held out", "as of */train/*"),
    Metric("*/heldout/*", "share", "accuracy on held-out pairs, by rating", "falls from significantly to negligibly"),
    Metric("time", "seconds", "since the step began, all its lives together", ""),
    Metric("time/tokens_per_second", "tokens", "since the step began; on dashboards only", "steady"),
    Metric("mem/peak_mb", "MB", "the process's memory at its fullest; on dashboards only", "steady"),
)


def meaning_of(name: str) -> Metric | None:
    """The entry of a name: its own, else the first pattern that fits."""
    own = next((metric for metric in METRICS if metric.name == name), None)
    return own or next((metric for metric in METRICS if fnmatchcase(name, metric.name)), None)
