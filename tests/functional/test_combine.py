"""Other combinations of two scores, worked by hand."""

import pytest
import torch

from rlhf.functional.combine import lagrangian_score, next_multiplier, weighted_score

HELPFUL, SAFE = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([-4.0, 3.0, 1.0])


def step(multiplier=2.0, mean_cost=1.5, *, cost_limit=0.5, rate=0.1, largest=100.0):
    return next_multiplier(multiplier, mean_cost, cost_limit=cost_limit, rate=rate, largest=largest)


def test_a_weighted_score_by_hand():
    # 0.75 * 2 + 0.25 * -4 = 0.5;  0.75 * -1 + 0.25 * 3 = 0;  0.75 * 0 + 0.25 * 1 = 0.25
    assert weighted_score(HELPFUL, SAFE, safety_weight=0.25).tolist() == [0.5, 0.0, 0.25]


def test_without_a_weight_a_model_has_no_say():
    lost = torch.full((3,), float("nan"))
    assert weighted_score(HELPFUL, lost, safety_weight=0.0).tolist() == HELPFUL.tolist()
    assert weighted_score(lost, SAFE, safety_weight=1.0).tolist() == SAFE.tolist()


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_is_a_share(weight):
    with pytest.raises(ValueError, match=r"safety_weight must be in \[0, 1\]"):
        weighted_score(HELPFUL, SAFE, safety_weight=weight)


def test_the_lagrangian_by_hand():
    # lambda 3: (2 + 3 * -4) / 4 = -2.5;  (-1 + 3 * 3) / 4 = 2;  (0 + 3 * 1) / 4 = 0.75
    assert lagrangian_score(HELPFUL, SAFE, multiplier=3.0).tolist() == [-2.5, 2.0, 0.75]


def test_what_costs_nothing_is_free():
    assert lagrangian_score(HELPFUL, SAFE, multiplier=0.0).tolist() == HELPFUL.tolist()


@pytest.mark.parametrize("multiplier", [-0.5, float("nan")])
def test_being_unsafe_is_never_rewarded(multiplier):
    with pytest.raises(ValueError, match="multiplier must not be negative"):
        lagrangian_score(HELPFUL, SAFE, multiplier=multiplier)


def test_the_price_by_hand():
    # 2 exp(0.1 * 2 * (1.5 - 0.5)) = 2 exp(0.2) = 2.442806;  2 exp(0.1 * 2 * (-0.5 - 0.5)) = 2 exp(-0.2) = 1.637462
    assert step() == pytest.approx(2.442806, abs=1e-6)
    assert step(mean_cost=-0.5) == pytest.approx(1.637462, abs=1e-6)
    assert step(mean_cost=0.5) == pytest.approx(2.0)


def test_the_price_has_bounds_and_comes_back():
    assert step(largest=2.1) == pytest.approx(2.1)
    assert step(mean_cost=1e9, largest=5.0) == pytest.approx(5.0)
    lowest = step(mean_cost=-1e9)
    assert 0.0 < lowest < 1e-12


@pytest.mark.parametrize("wrong", [{"multiplier": 0.0}, {"rate": 0.0}, {"largest": 0.0}, {"mean_cost": float("nan")}])
def test_a_price_that_cannot_be_is_refused(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"^{name} must be"):
        step(**wrong)
