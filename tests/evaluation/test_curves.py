"""Best-of-N curves against every subset, and what the gold judge says of the best."""

from itertools import combinations
from statistics import fmean, median

import pytest
import torch

from rlhf.evaluation.curves import expected_max_curve, expected_median_curve, gold_of_best, sizes_up_to

SCORES = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
GOLD = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def over_all_subsets(statistic, n):
    return fmean(fmean(statistic(some) for some in combinations(row, n)) for row in SCORES.tolist())


def test_curves_are_means_over_prompts_and_subsets():
    sizes = [1, 2, 3, 6]
    top, middle = expected_max_curve(SCORES, sizes), expected_median_curve(SCORES, sizes)
    assert top == pytest.approx({n: over_all_subsets(max, n) for n in sizes})
    assert middle == pytest.approx({n: over_all_subsets(median, n) for n in sizes})
    assert top[1] == pytest.approx(SCORES.mean().item())
    assert top[6] == pytest.approx(SCORES.max(1).values.mean().item())


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_gold_of_the_best_of_every_subset(n):
    wanted = [
        gold[max(some, key=lambda i, row=row: row[i])]
        for row, gold in zip(SCORES.tolist(), GOLD.tolist(), strict=True)
        for some in combinations(range(6), n)
    ]
    assert gold_of_best(SCORES, GOLD, [n]) == pytest.approx({n: fmean(wanted)})


def test_gold_falls_where_the_score_is_gamed():
    # The judge likes an answer the less the higher it scores; the best of pairs of 1 to 4 is 2, 3, 3, 4, 4, 4.
    scores = torch.tensor([[1.0, 4.0, 2.0, 3.0]])
    assert gold_of_best(scores, -scores, [1, 2, 4]) == pytest.approx({1: -2.5, 2: -20 / 6, 4: -4.0})


@pytest.mark.parametrize(("samples", "sizes"), [(1, [1]), (3, [1, 2]), (16, [1, 2, 4, 8, 16]), (20, [1, 2, 4, 8, 16])])
def test_sizes_double(samples, sizes):
    assert sizes_up_to(samples) == sizes
