"""Best of K: expectations against every subset there is."""

from itertools import combinations

import numpy as np
import pytest
import torch

from rlhf.functional.best_of import expected_at_max, expected_max, expected_median


def test_pairs_of_three_by_hand():
    # {1, 2}, {1, 4}, {2, 4}: maxima 2 + 4 + 4 = 10, medians 1.5 + 2.5 + 3 = 7
    scores = torch.tensor([4.0, 1.0, 2.0])
    torch.testing.assert_close(expected_max(scores, k=2), torch.tensor(10 / 3))
    torch.testing.assert_close(expected_median(scores, k=2), torch.tensor(7 / 3))


@pytest.mark.parametrize("k", range(1, 8))
def test_every_subset_of_seven(k):
    scores = np.random.default_rng(0).normal(size=(2, 7))
    subsets = scores[:, list(combinations(range(7), k))]  # [2, C(7, k), k]
    rows = torch.from_numpy(scores)
    torch.testing.assert_close(expected_max(rows, k=k), torch.from_numpy(subsets.max(-1).mean(-1)))
    torch.testing.assert_close(expected_median(rows, k=k), torch.from_numpy(np.median(subsets, axis=-1).mean(-1)))


@pytest.mark.parametrize(("n", "k"), [(100, 1), (100, 37), (100, 50), (100, 100), (2000, 1000)])
def test_closed_forms_at_sizes_where_factorials_overflow(n, k):
    # of the numbers 1 ... n, the largest of k is k (n + 1) / (k + 1) on average, the median (n + 1) / 2 by symmetry
    scores = torch.arange(n, 0, -1, dtype=torch.float64)
    torch.testing.assert_close(expected_max(scores, k=k).item(), k * (n + 1) / (k + 1))
    torch.testing.assert_close(expected_median(scores, k=k).item(), (n + 1) / 2)


@pytest.mark.parametrize("expected", [expected_max, expected_median])
def test_one_sample_is_worth_the_mean_and_shape_is_kept(expected):
    scores = torch.tensor([[[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]]])
    torch.testing.assert_close(expected(scores, k=1), torch.tensor([[3.0, 1.0]]))


def test_all_samples_are_worth_what_they_are():
    scores = torch.tensor([3.0, 9.0, 1.0])
    assert expected_max(scores, k=3) == 9.0
    assert expected_median(scores, k=3) == 3.0


@pytest.mark.parametrize("expected", [expected_max, expected_median])
def test_impossible_requests_are_refused(expected):
    for k in (0, 4):
        with pytest.raises(ValueError, match="k must be between 1 and the 3 samples"):
            expected(torch.zeros(3), k=k)
    for bad in (torch.nan, -torch.inf):
        with pytest.raises(ValueError, match="finite"):
            expected(torch.tensor([0.0, bad]), k=1)


def test_the_worth_of_the_best_by_hand():
    # Scores 1, 4, 2: of {1, 4}, {1, 2}, {4, 2} the bests are 4, 2 and 4, worth 20, 30 and 20.
    scores, values = torch.tensor([1.0, 4.0, 2.0]), torch.tensor([10.0, 20.0, 30.0])
    torch.testing.assert_close(expected_at_max(scores, values, k=2), torch.tensor(70 / 3))
    torch.testing.assert_close(expected_at_max(scores, values, k=1), torch.tensor(20.0))
    torch.testing.assert_close(expected_at_max(scores, values, k=3), torch.tensor(20.0))


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_worth_of_the_best_over_every_subset_with_equal_scores(k):
    scores = torch.tensor([[3.0, 1.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    values = torch.arange(10, dtype=torch.float64).view(2, 5) ** 2
    for row, worth in zip(scores.tolist(), values.tolist(), strict=True):
        # max() takes the first of equals, as best_of does
        bests = [worth[max(some, key=lambda i, row=row: row[i])] for some in combinations(range(5), k)]
        found = expected_at_max(torch.tensor(row, dtype=torch.float64), torch.tensor(worth, dtype=torch.float64), k=k)
        torch.testing.assert_close(found.item(), float(np.mean(bests)))
