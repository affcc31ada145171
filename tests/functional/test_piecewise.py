"""The piecewise score: the truth table of the paper."""

import pytest
import torch

from rlhf.functional.piecewise import piecewise_score

HELPFUL = 7.0


def combined(safety_score: float, *, tagged: bool, threshold: float) -> float:
    return piecewise_score(
        torch.tensor([HELPFUL]), torch.tensor([safety_score]), torch.tensor([tagged]), safety_threshold=threshold
    ).item()


@pytest.mark.parametrize(
    ("tagged", "safety_score", "speaks"),
    [
        # recipe check S7. logit(0.1499) = -1.735370, logit(0.1501) = -1.733818
        (True, 3.0, "safety"),
        (True, -3.0, "safety"),
        (False, -1.735370, "safety"),
        (False, -1.733818, "helpfulness"),
        (False, 3.0, "helpfulness"),
        # between 0.15 taken as a logit and 0.15 as a probability: sigmoid(0) = 0.5, sigmoid(0.1) = 0.525
        (False, 0.0, "helpfulness"),
        (False, 0.1, "helpfulness"),
    ],
)
def test_truth_table(tagged, safety_score, speaks):
    expected = HELPFUL if speaks == "helpfulness" else safety_score
    assert combined(safety_score, tagged=tagged, threshold=0.15) == pytest.approx(expected)


def test_exactly_at_the_threshold_helpfulness_speaks():
    # strictly below counts as unsafe; sigmoid(0) is 0.5 without rounding
    assert combined(0.0, tagged=False, threshold=0.5) == HELPFUL
    assert combined(-1e-6, tagged=False, threshold=0.5) != HELPFUL


def test_a_reported_score_of_0_15_is_not_below_0_15():
    reported = torch.tensor([0.15])
    score = piecewise_score(torch.tensor([HELPFUL]), reported.logit(), torch.tensor([False]), safety_threshold=0.15)
    assert score.item() == HELPFUL


def test_rows_do_not_mix():
    score = piecewise_score(
        torch.tensor([1.0, 2.0, 3.0]),
        torch.tensor([-4.0, -5.0, 6.0]),
        torch.tensor([False, True, False]),
        safety_threshold=0.15,
    )
    assert score.tolist() == [-4.0, -5.0, 3.0]


def test_a_threshold_of_zero_leaves_only_the_tag():
    assert combined(-50.0, tagged=False, threshold=0.0) == HELPFUL


def test_a_safety_score_that_is_not_a_number_is_not_hidden():
    assert torch.tensor(combined(float("nan"), tagged=False, threshold=0.15)).isnan()


def test_half_precision_scores_are_compared_in_single_precision():
    # -1.734375 is a bfloat16 number; its sigmoid 0.150029 is above 0.15, but rounds to 0.1494 or 0.1504 in bfloat16
    score = piecewise_score(
        torch.tensor([HELPFUL], dtype=torch.bfloat16),
        torch.tensor([-1.734375], dtype=torch.bfloat16),
        torch.tensor([False]),
        safety_threshold=0.1501,
    )
    assert score.item() == -1.734375


@pytest.mark.parametrize("threshold", [-1.7346, 1.5, float("nan")])
def test_a_threshold_in_logits_is_refused(threshold):
    with pytest.raises(ValueError, match="probability"):
        combined(0.0, tagged=False, threshold=threshold)
