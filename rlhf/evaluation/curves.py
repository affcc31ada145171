"""Max and median of N against N (Fig 7, Fig 8), by unbiased estimators over all subsets of the samples drawn."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rlhf.functional.best_of import expected_at_max, expected_max, expected_median


def expected_max_curve(scores: Tensor, sizes: Sequence[int]) -> dict[int, float]:
    """scores [prompts, samples] -> for each N the mean over prompts of the expected best of N."""
    return {n: expected_max(scores, k=n).mean().item() for n in sizes}


def expected_median_curve(scores: Tensor, sizes: Sequence[int]) -> dict[int, float]:
    """The same of the median, which stays flat where the maximum grows (Fig 7)."""
    return {n: expected_median(scores, k=n).mean().item() for n in sizes}


def gold_of_best(scores: Tensor, gold: Tensor, sizes: Sequence[int]) -> dict[int, float]:
    """For each N what the gold judge says of the best of N by score, on average over prompts: [P, K] -> {N: mean}.

    It falls where the score is being gamed: best-of-N over-optimises as training does.
    """
    return {n: expected_at_max(scores, gold, k=n).mean().item() for n in sizes}


def sizes_up_to(samples: int) -> list[int]:
    """1, 2, 4, ... up to the number of samples."""
    return [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= samples]
