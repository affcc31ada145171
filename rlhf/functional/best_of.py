"""Best of K: what to expect of k samples (paper 3.2.3, Figures 7, 8)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def expected_max(scores: Float[Tensor, "*batch N"], *, k: int) -> Float[Tensor, "*batch"]:
    """The score that the best of k samples has on average, estimated from N >= k samples (Figure 7, upper curve).

        E = sum_i x_(i) C(i - 1, k - 1) / C(N, k),   x_(1) <= ... <= x_(N)

    This is the mean of the maximum over all C(N, k) subsets: unbiased, and with less variance than the maximum of
    the first k samples. One set of N samples gives the whole curve for k = 1 ... N.

    Args:
        scores: [*batch, N] finite scores of independent samples, in any unit.
        k: samples per prompt, 1 <= k <= N.

    Returns:
        [*batch] in the unit of the scores.

    Raises:
        ValueError: if k is not in [1, N], or a score is not finite.
    """
    return _expected_order_statistics(scores, k, (k - 1,))


def expected_at_max(
    scores: Float[Tensor, "*batch N"], values: Float[Tensor, "*batch N"], *, k: int
) -> Float[Tensor, "*batch"]:
    """What the best of k samples by score is worth by another measure, on average, estimated from N >= k samples.

        E = sum_i v_(i) C(i - 1, k - 1) / C(N, k),   v_(i) the value of the sample with the i-th lowest score

    The mean over all C(N, k) subsets of the value of the subset's best, the first of equals: unbiased. Where it falls
    with k, choosing by this score is over-optimised. Arguments and errors as in `expected_max`; values in any unit.
    """
    weights = _weights(scores, k, (k - 1,))
    # Backwards, so that of equal scores the first comes last, as the best.
    order = scores.flip(-1).sort(dim=-1, stable=True).indices
    return (values.flip(-1).gather(-1, order).double() @ weights).to(values.dtype)


def expected_median(scores: Float[Tensor, "*batch N"], *, k: int) -> Float[Tensor, "*batch"]:
    """The score that the median of k samples has on average, estimated from N >= k samples (Figure 7, lower curve).

        E = sum_i x_(i) C(i - 1, r - 1) C(N - i, k - r) / C(N, k),   r = (k + 1) / 2

    The mean of the median over all C(N, k) subsets. For even k the median is the mean of the middle two, r = k / 2
    and r = k / 2 + 1. Arguments and errors as in `expected_max`.
    """
    return _expected_order_statistics(scores, k, ((k - 1) // 2, k // 2))


def _expected_order_statistics(
    scores: Float[Tensor, "*batch N"], k: int, ranks: tuple[int, ...]
) -> Float[Tensor, "*batch"]:
    """Mean over all subsets of size k, and over `ranks` (from 0), of the score with that rank in the subset."""
    weights = _weights(scores, k, ranks)
    return (scores.double().sort(dim=-1).values @ weights).to(scores.dtype)


def _weights(scores: Float[Tensor, "*batch N"], k: int, ranks: tuple[int, ...]) -> Float[Tensor, " N"]:
    """The weight of the i-th lowest of N scores: the share of the subsets of size k in which its rank is in `ranks`."""
    n = scores.shape[-1]
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the {n} samples there are, got {k!r}")
    if not bool(scores.isfinite().all()):
        raise ValueError("scores must be finite")
    # The i-th smallest has rank r in the subsets with r members below and k - 1 - r above it. Python divides whole
    # numbers of any size to the nearest double, so the weights are exact where factorials would long have overflowed.
    subsets = len(ranks) * math.comb(n, k)
    weights = [sum(math.comb(i, r) * math.comb(n - 1 - i, k - 1 - r) for r in ranks) / subsets for i in range(n)]
    return torch.tensor(weights, dtype=torch.float64, device=scores.device)
