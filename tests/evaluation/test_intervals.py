"""Intervals against numbers worked by hand, and against what a Wilson interval is defined by."""

import math

import pytest

from rlhf.evaluation.intervals import apart, of_mean, paired, paired_quantile, sign_test, wilson

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


def test_the_sign_test_by_hand():
    # Four wins, one loss, three ties: of 32 outcomes of five coins 2 (1 + 5) are as far from the middle.
    assert sign_test([1, 1, 1, 1, 0, 1, 0, 0.5], [0, 0, 0, 0.5, 1, 1, 0, 0.5]) == pytest.approx(12 / 32)
    assert sign_test([0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]) == pytest.approx(2 / 64)
    assert sign_test([1, 0.5], [1, 0.5]) == 1.0  # nothing differs


def test_the_mean_by_hand():
    # 1 2 3 4: mean 2.5, s^2 = 5/3, s / sqrt(4) = .6455, times 1.96 = 1.2652.
    assert of_mean([1, 2, 3, 4]) == pytest.approx((1.2348, 3.7652), abs=5e-5)
    # 0 0 1: mean 1/3, s^2 = 1/3, s / sqrt(3) = 1/3, times 1.96 = .6533.
    assert of_mean([0, 0, 1]) == pytest.approx((-0.3200, 0.9867), abs=5e-5)


def test_without_spread_the_interval_is_a_point():
    assert of_mean([7.0]) == (7.0, 7.0)
    assert of_mean([0.5] * 9) == (0.5, 0.5)


def test_differences_by_hand():
    # Differences 1 1 4: mean 2, s^2 = 3, 1.96 sqrt(3 / 3) = 1.96.
    assert paired([2, 3, 7], [1, 2, 3]) == {"mean": 2.0, "interval": pytest.approx((0.04, 3.96), abs=1e-4)}
    # Apart: means 4 and 2, s^2 = 7 and 1, 1.96 sqrt(7/3 + 1/3) = 3.2007.
    found = apart([2, 3, 7], [1, 2, 3])
    assert found["mean"] == pytest.approx(2.0)
    assert found["interval"] == pytest.approx((-1.2007, 5.2007), abs=1e-4)


def test_a_quantile_is_resampled_in_pairs():
    lower = [float(i % 17) for i in range(200)]
    raised = [value + 1 for value in lower]
    # However they are drawn, each is one higher: there is no error. Drawn apart there would be.
    assert paired_quantile(raised, lower, 0.1) == {"difference": 1.0, "interval": (1.0, 1.0)}
    found = paired_quantile([*raised[:100], *lower[100:]], lower, 0.1)
    assert found["interval"][0] <= found["difference"] <= found["interval"][1]
    assert found["interval"][0] < found["interval"][1]


def test_the_tenth_of_normal_numbers_is_covered():
    import numpy as np

    # The tenth percentile of N(1/2, 1) lies 1/2 above that of N(0, 1).
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(20):
        low, high = paired_quantile(rng.normal(0.5, 1, 400), rng.normal(0, 1, 400), 0.1)["interval"]
        inside += low <= 0.5 <= high
    assert inside >= 17
