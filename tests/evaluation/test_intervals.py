"""Intervals against numbers worked by hand, and against what a Wilson interval is defined by."""

import math

import pytest

from rlhf.evaluation.intervals import of_mean, wilson

Z = 1.959964  # of the normal distribution, 97.5% lie below


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # z^2 = 3.8415. Middle and half are both (3.8415/20) / (1 + 3.8415/10) = .1387.
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        # Middle (.8 + .1921) / 1.3841 = .7167, half 1.96 sqrt(.016 + .0096) / 1.3841 = .2266.
        (8, 10, 0.4902, 0.9433),
        # Middle .5, half 1.96 sqrt(.25/4 + 3.8415/64) / (1 + 3.8415/4) = .35.
        (2, 4, 0.15, 0.85),
        (0, 60, 0.0, 0.0602),  # (3.8415/60) / (1 + 3.8415/60)
        (0, 0, 0.0, 1.0),  # nothing was seen, so anything is possible
    ],
)
def test_wilson_by_hand(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(1, 3), (7, 9), (50, 100), (1, 1000), (999, 1000)])
def test_wilson_ends_where_the_share_would_be_rejected(successes, n):
    """Its definition: at both ends p the share is 1.96 standard errors away, by the standard error that p implies."""
    share = successes / n
    for p in wilson(successes, n):
        assert abs(share - p) == pytest.approx(Z * math.sqrt(p * (1 - p) / n), abs=1e-9)


@pytest.mark.parametrize("n", [1, 7, 40])
def test_wilson_mirrors_and_stays_inside(n):
    for successes in range(n + 1):
        low, high = wilson(successes, n)
        assert 0.0 <= low <= successes / n <= high <= 1.0
        assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))


def test_the_mean_by_hand():
    # 1 2 3 4: mean 2.5, s^2 = 5/3, s / sqrt(4) = .6455, times 1.96 = 1.2652.
    assert of_mean([1, 2, 3, 4]) == pytest.approx((1.2348, 3.7652), abs=5e-5)
    # 0 0 1: mean 1/3, s^2 = 1/3, s / sqrt(3) = 1/3, times 1.96 = .6533.
    assert of_mean([0, 0, 1]) == pytest.approx((-0.3200, 0.9867), abs=5e-5)


def test_without_spread_the_interval_is_a_point():
    assert of_mean([7.0]) == (7.0, 7.0)
    assert of_mean([0.5] * 9) == (0.5, 0.5)
