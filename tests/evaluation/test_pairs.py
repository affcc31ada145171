"""Reward models on held-out pairs whose scores are chosen so that every figure can be worked by hand."""

import pytest
import torch

from rlhf.data.types import Preference, Turn
from rlhf.evaluation.pairs import (
    accuracy_by_rating,
    accuracy_by_safety,
    accuracy_by_source,
    calibration,
    difference,
    difference_by_rating,
    worst,
)


def pair(rating=None, chosen_safe=None, rejected_safe=None, source="people"):
    return Preference("p", (Turn("user", "q"),), "a", "b", source, rating, chosen_safe, rejected_safe, is_safety=False)


def scores(*values):
    return torch.tensor(values)


# ── accuracy ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_accuracy_by_rating_by_hand():
    rows = [pair("significantly"), pair("significantly"), pair("better"), pair("negligibly"), pair("negligibly")]
    found = accuracy_by_rating(rows, scores(2.0, 1.0, 0.0, 3.0, -1.0), scores(1.0, 0.0, 1.0, 3.0, -2.0))
    # Right, right; wrong; a tie (half), right: 2/2, 0/1, 1.5/2, all 3.5/5. Nobody said "slightly".
    assert found["accuracy"] == {"significantly": 1.0, "better": 0.0, "negligibly": 0.75, "all": 0.7}
    assert found["pairs"] == {"significantly": 2, "better": 1, "negligibly": 2, "all": 5}
    assert found["interval"].keys() == found["pairs"].keys()


def test_differences_by_rating_by_hand():
    rows = [pair("significantly")] * 3 + [pair("negligibly")] * 2 + [pair()]
    found = difference_by_rating(rows, scores(1.0, 1.0, 1.0, -1.0, 1.0, 1.0), scores(-1.0, -1.0, 1.0, 1.0, 1.0, -1.0))
    # Right 3 of 3 for 1 of 3, two coins alike: p 1/2. Right 1 of 2 for 2 of 2. All: 5 for 3, won 3, lost 1: p 10/16.
    wanted = {"significantly": (2 / 3, 0.5, 3), "negligibly": (-0.5, 1.0, 2), "all": (2 / 6, 10 / 16, 6)}
    assert {bucket: (row["mean"], row["p"], row["n"]) for bucket, row in found.items()} == {
        bucket: pytest.approx(row) for bucket, row in wanted.items()
    }


def test_intervals_of_accuracy_by_hand():
    found = accuracy_by_rating([pair("better")] * 10, scores(*[1.0] * 8, *[0.0] * 2), scores(*[0.5] * 10))
    assert found["accuracy"] == {"better": 0.8, "all": 0.8}
    assert found["interval"]["better"] == pytest.approx((0.4902, 0.9433), abs=5e-5)


def test_pairs_without_a_rating_count_in_all_alone():
    found = accuracy_by_rating([pair(), pair("slightly")], scores(1.0, 0.0), scores(0.0, 1.0))
    assert found["accuracy"] == {"slightly": 0.0, "all": 0.5}
    assert found["pairs"] == {"slightly": 1, "all": 2}


def test_only_the_order_of_a_pair_counts():
    rows = [pair("better")] * 3
    chosen, rejected = scores(1.0, -5.0, 0.3), scores(0.0, -4.0, 0.2)
    shifted = scores(100.0, -100.0, 0.0)
    assert accuracy_by_rating(rows, chosen + shifted, rejected + shifted) == accuracy_by_rating(rows, chosen, rejected)


def test_accuracy_by_source_by_hand():
    rows = [pair(source="kind"), pair(source="blunt"), pair(source="kind"), pair(source="kind"), pair(source="kind")]
    found = accuracy_by_source(rows, scores(1.0, 1.0, 1.0, 0.0, 2.0), scores(0.0, 2.0, 1.0, 1.0, 1.0))
    # kind: right, tie, wrong, right = 2.5 of 4; blunt: 0 of 1.
    assert list(found) == ["blunt", "kind"]
    assert (found["kind"]["accuracy"], found["kind"]["n"]) == (0.625, 4)
    assert (found["blunt"]["accuracy"], found["blunt"]["n"]) == (0.0, 1)
    # z^2 / (1 + z^2) = 3.8415 / 4.8415 above a share of 0 in 1; 2 of 4 as the nearest even count to 2.5.
    assert found["blunt"]["interval"] == pytest.approx((0.0, 0.7935), abs=5e-5)
    assert found["kind"]["interval"] == pytest.approx((0.15, 0.85), abs=5e-5)


def test_accuracy_by_safety_bin_by_hand():
    rows = [pair(None, True, False), pair(None, True, True), pair(None, False, False), pair(None, True, False), pair()]
    found = accuracy_by_safety(rows, scores(1.0, 0.0, 2.0, 0.0, 9.0), scores(0.0, 1.0, 1.0, 0.0, 0.0))
    # A tie in the first bin: 1.5 of 2. A pair that nobody labelled is in none.
    assert {name: (row["accuracy"], row["n"]) for name, row in found.items()} == {
        "safe_over_unsafe": (0.75, 2),
        "both_safe": (0.0, 1),
        "both_unsafe": (1.0, 1),
    }


def test_a_paired_difference_by_hand():
    found = difference(scores(1.0, 1.0, -1.0, 0.0), scores(-1.0, 2.0, -3.0, 1.0))
    # Right 1 1 0 .5 against 0 1 0 1: differences 1 0 0 -.5, mean .125, s = .6292, 1.96 s / 2 = .6166.
    assert found["mean"] == 0.125
    assert found["interval"] == pytest.approx((-0.4916, 0.7416), abs=5e-4)


def test_the_worst_pairs_are_the_most_confident_mistakes():
    rows = [pair("better"), pair("slightly"), pair(), pair()]
    found = worst(rows, scores(0.0, -3.0, 1.0, 0.0), scores(1.0, 2.0, 0.0, 0.0), count=3)
    # Gaps -1, -5, 1, 0: two are wrong, the second by more.
    assert [(row["rating"], row["chosen_score"], row["rejected_score"]) for row in found] == [
        ("slightly", -3.0, 2.0),
        ("better", 0.0, 1.0),
    ]
    assert found[0]["prompt"] == [{"role": "user", "content": "q"}]


# ── calibration ──────────────────────────────────────────────────────────────────────────────────────────────────────


def gaps(*sure):
    """Score gaps that claim these probabilities; a negative one prefers the rejected side."""
    claimed = torch.tensor(sure)
    return claimed.abs().logit() * claimed.sign()


def test_calibration_by_hand():
    # The less sure half: .7 is right, .6 wrong; the surer half is right both times.
    chosen = gaps(0.7, 0.9, -0.6, 0.8)
    found = calibration([pair()] * 4, chosen, torch.zeros(4), bins=2)
    assert [row["n"] for row in found] == [2, 2]
    assert [row["predicted"] for row in found] == pytest.approx([0.65, 0.85], abs=1e-6)
    assert [row["observed"] for row in found] == [0.5, 1.0]


@pytest.mark.parametrize("n", [2, 3, 7, 13, 60, 61])
def test_every_pair_is_in_one_bin(n):
    gap = torch.randn(n, generator=torch.Generator().manual_seed(0))
    found = calibration([pair()] * n, gap, torch.zeros(n), bins=6)
    counts = [row["n"] for row in found]
    assert sum(counts) == n
    assert max(counts) - min(counts) <= 1
    right = sum(row["n"] * row["observed"] for row in found)
    assert right == pytest.approx((gap > 0).sum().item())
    assert [row["predicted"] for row in found] == sorted(row["predicted"] for row in found)


def test_a_model_without_opinion_is_calibrated():
    found = calibration([pair()] * 12, torch.zeros(12), torch.zeros(12), bins=3)
    assert [(row["predicted"], row["observed"]) for row in found] == [(0.5, 0.5)] * 3


def test_a_model_that_tells_the_truth_lies_on_the_diagonal():
    p = 0.5 + 0.5 * torch.rand(20000, generator=torch.Generator().manual_seed(0))
    wins = torch.rand(20000, generator=torch.Generator().manual_seed(1)) < p
    chosen = p.logit() * torch.where(wins, 1.0, -1.0)
    for row in calibration([pair()] * 20000, chosen, torch.zeros(20000), bins=5):
        # A share of 4000 has a standard error of at most .008.
        assert abs(row["observed"] - row["predicted"]) < 0.03
