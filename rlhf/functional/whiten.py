"""Whitening: scores and advantages on a scale that the KL penalty can be weighed against (paper 3.2.3).

The statistics are a value of their own, so that the caller says over what they are taken.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor


class Moments(NamedTuple):
    """How many numbers there are, their mean, and their variance over `count` (not count - 1), all scalars.

    In double precision: the mean of equal single-precision numbers is then that number exactly, so a constant
    batch has variance 0 and whitens to zeros.
    """

    count: Float[Tensor, ""]  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    mean: Float[Tensor, ""]
    var: Float[Tensor, ""]


def moments(x: Float[Tensor, "*shape"], where: Bool[Tensor, "*shape"]) -> Moments:
    """Count, mean and variance of the numbers that take part.

        mean = sum(x) / n,   var = sum((x - mean)^2) / n

    Args:
        x: [*shape] in any unit; not read where `where` is False, so it may be NaN there.
        where: [*shape] True where a number takes part. Nowhere: `whiten` refuses the result.

    Returns:
        The moments, free of gradients.
    """
    inside = x.detach().double().masked_fill(~where, 0.0)
    count = where.sum().double()
    mean = inside.sum() / count
    var = (inside - mean).masked_fill(~where, 0.0).square().sum() / count
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
    if not epsilon > 0.0:
        raise ValueError(f"epsilon must be positive, got {epsilon!r}")
    if moments.count < 2:
        raise ValueError(f"whitening needs at least 2 numbers, got {int(moments.count)}")
    scale = moments.var.sqrt().clamp(min=epsilon)
    return ((x.double() - moments.mean) / scale).to(x.dtype).masked_fill(~where, 0.0)
