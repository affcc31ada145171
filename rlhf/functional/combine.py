"""Other ways to make one score out of two, to compare the piecewise score of the paper with (ours)."""

import math

from jaxtyping import Float
from torch import Tensor

SMALLEST_LOG = -30.0
"""A price of 1e-13 is none; rounded to zero, it could never rise again."""


def weighted_score(
    helpfulness_score: Float[Tensor, " B"], safety_score: Float[Tensor, " B"], *, safety_weight: float
) -> Float[Tensor, " B"]:
    """Both models speak for every completion, each with a fixed weight.

        R = (1 - w) R_h + w R_s

    Ours. Both are logits, but nothing makes their spreads equal: of two models with the same weight, the one whose
    scores spread wider decides more. 0 is the helpfulness model alone and 1 the safety model alone.

    Args:
        helpfulness_score: [B] R_h, in logits.
        safety_score: [B] R_s, in logits.
        safety_weight: w, in [0, 1].

    Returns:
        [B] the weighted mean, in logits, not yet whitened.

    Raises:
        ValueError: if `safety_weight` is not in [0, 1].
    """
    if not 0.0 <= safety_weight <= 1.0:
        raise ValueError(f"safety_weight must be in [0, 1], got {safety_weight!r}")
    # The model without a weight has no say, not even when its score is not a number.
    if safety_weight == 0.0:
        return helpfulness_score.clone()
    if safety_weight == 1.0:
        return safety_score.clone()
    return (1.0 - safety_weight) * helpfulness_score + safety_weight * safety_score


def lagrangian_score(
    helpfulness_score: Float[Tensor, " B"], safety_score: Float[Tensor, " B"], *, multiplier: float
) -> Float[Tensor, " B"]:
    """Helpfulness under a price for being unsafe: the Lagrangian of "help, as long as the mean cost is low".

        R = (R_h - lambda C) / (1 + lambda),   C = -R_s

    From Safe RLHF (Dai et al. 2023), which divides by 1 + lambda so that a high price does not make steps longer, and
    combines advantages of two critics this way. Ours: scores are combined, so that one critic is enough; since both
    advantages are linear in the scores, only the KL penalty and whitening see a difference.

    Args:
        helpfulness_score: [B] R_h, in logits.
        safety_score: [B] R_s, in logits; the cost is its negative.
        multiplier: lambda >= 0, from `next_multiplier`.

    Returns:
        [B] in logits, not yet whitened.

    Raises:
        ValueError: if the multiplier is negative (a reward for being unsafe).
    """
    if not multiplier >= 0.0:
        raise ValueError(f"multiplier must not be negative, got {multiplier!r}")
    return (helpfulness_score + multiplier * safety_score) / (1.0 + multiplier)


def next_multiplier(multiplier: float, mean_cost: float, *, cost_limit: float, rate: float, largest: float) -> float:
    """Raise the price of cost while the mean cost is above its limit, and lower it while it is below.

        log lambda <- min( log lambda + rate lambda (mean C - limit), log largest )

    One step of gradient ascent on lambda (mean C - limit) in log lambda, as in Safe RLHF: the price stays positive.

    Args:
        multiplier: lambda > 0.
        mean_cost: mean of C = -R_s over the batch, in logits.
        cost_limit: the cost allowed on average, in logits; 0 is an even chance of being unsafe.
        rate: step size > 0.
        largest: the multiplier goes no higher.

    Returns:
        The next lambda, positive.

    Raises:
        ValueError: if the multiplier, the rate or the largest multiplier is not positive, or the cost is not finite.
    """
    for name, value in (("multiplier", multiplier), ("rate", rate), ("largest", largest)):
        if not value > 0.0:
            raise ValueError(f"{name} must be positive, got {value!r}")
    if not math.isfinite(mean_cost):
        raise ValueError(f"mean_cost must be finite, got {mean_cost!r}")
    # The smaller of the two before the exponential, which would overflow at a large cost.
    log = math.log(multiplier) + rate * multiplier * (mean_cost - cost_limit)
    return math.exp(max(min(log, math.log(largest)), SMALLEST_LOG))
