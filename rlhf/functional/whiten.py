"""Whitening: scores and advantages on a scale that the KL penalty can be weighed against (paper 3.2.3).

The statistics are a value of their own, because a batch is spread over processes: each takes the `moments` of its
share, `merge_moments` makes them those of the whole batch, and every process whitens with the same numbers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Moments(NamedTuple):
    """How many numbers there are, their mean, and their variance over `count` (not count - 1), all scalars.

    In double precision: the mean of equal single-precision numbers is then that number exactly, so a constant
    batch has variance 0 and whitens to zeros. `torch.stack(moments)` is [3] and `Moments(*stacked)` its inverse,
    for gathering over processes.
    """

    count: Float[Tensor, ""]  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    mean: Float[Tensor, ""]
    var: Float[Tensor, ""]


def moments(x: Float[Tensor, "*shape"], where: Bool[Tensor, "*shape"]) -> Moments:
    """Count, mean and variance of the numbers that take part.

        mean = sum(x) / n,   var = sum((x - mean)^2) / n

    Args:
        x: [*shape] in any unit; not read where `where` is False, so it may be NaN there.
        where: [*shape] True where a number takes part. True nowhere gives (0, 0, 0), which merges as nothing.

    Returns:
        The moments of this share of the batch, free of gradients.
    """
    inside = x.detach().double().masked_fill(~where, 0.0)
    count = where.sum().double()
    at_least_one = count.clamp(min=1.0)
    mean = inside.sum() / at_least_one
    var = (inside - mean).masked_fill(~where, 0.0).square().sum() / at_least_one
    return Moments(count, mean, var)


def merge_moments(parts: Sequence[Moments]) -> Moments:
    """The moments of the whole, from those of its parts, as if it had been seen in one piece.

        n = sum n_i,   mean = sum n_i mean_i / n,   var = sum n_i (var_i + (mean_i - mean)^2) / n

    Args:
        parts: the moments of each process or microbatch, in any order; parts that saw nothing are welcome.

    Returns:
        The moments of all numbers together.

    Raises:
        ValueError: if there are no parts.
    """
    if not parts:
        raise ValueError("no moments to merge")
    counts, means, variances = (torch.stack(column) for column in zip(*parts, strict=True))
    count = counts.sum()
    at_least_one = count.clamp(min=1.0)
    mean = (counts * means).sum() / at_least_one
    var = (counts * (variances + (means - mean).square())).sum() / at_least_one
    return Moments(count, mean, var)


def whiten(
    x: Float[Tensor, "*shape"], where: Bool[Tensor, "*shape"], moments: Moments, *, epsilon: float
) -> Float[Tensor, "*shape"]:
    """Shift and scale to mean 0 and variance 1 (paper 3.2.3, WHITEN).

        (x - mean) / max(std, epsilon)   where `where` is True
        0                                elsewhere

    The result does not change when x is scaled by a positive factor or shifted, so a reward model with a wider
    spread (a larger margin, Figure 27) does not outweigh the KL penalty. Constant numbers become zeros.
    Ours: the paper says neither over which batch the statistics run nor whether the mean is removed. A floor under
    std, instead of a number added to it, keeps the scaling exact for every batch that is not constant.

    Args:
        x: [*shape] the scores (in logits) or advantages.
        where: [*shape] True where x takes part.
        moments: of the whole batch, over all processes.
        epsilon: the smallest std divided by, in the unit of x.

    Returns:
        [*shape] in units of one standard deviation.

    Raises:
        ValueError: if the moments are of fewer than 2 numbers, or `epsilon` is not positive.
    """
    scale = _scale(moments, epsilon)
    return ((x.double() - moments.mean) / scale).to(x.dtype).masked_fill(~where, 0.0)


def unit_variance(
    x: Float[Tensor, "*shape"], where: Bool[Tensor, "*shape"], moments: Moments, *, epsilon: float
) -> Float[Tensor, "*shape"]:
    """Scale to variance 1 and leave the zero where it was: what is positive stays positive.

        x / max(std, epsilon)   where `where` is True
        0                       elsewhere

    Ours, the other reading of WHITEN; see `whiten` for arguments and errors.
    """
    scale = _scale(moments, epsilon)
    return (x.double() / scale).to(x.dtype).masked_fill(~where, 0.0)


def _scale(moments: Moments, epsilon: float) -> Float[Tensor, ""]:
    if not epsilon > 0.0:
        raise ValueError(f"epsilon must be positive, got {epsilon!r}")
    if moments.count < 2:
        raise ValueError(f"whitening needs at least 2 numbers, got {int(moments.count)}")
    return moments.var.sqrt().clamp(min=epsilon)
