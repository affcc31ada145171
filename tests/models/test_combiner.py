"""Every way that `ppo.combine` names, and the price that the Lagrangian remembers."""

import math

import pytest
import torch

from rlhf.models.combiner import Combiner
from rlhf.models.reward_models import Scores
from rlhf.schema import PPOConfig

SCORES = Scores(torch.tensor([2.0, -1.0]), torch.tensor([-4.0, 3.0]), torch.tensor([-4.0, -1.0]))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("piecewise", [-4.0, -1.0]),
        ("weighted", [0.5, 0.0]),  # 3/4 of one and 1/4 of the other
        ("helpfulness", [2.0, -1.0]),
        ("safety", [-4.0, 3.0]),
        ("lagrangian", [-2.5, 2.0]),  # (2 - 3 * 4) / 4 and (-1 + 3 * 3) / 4
    ],
)
def test_each_way_by_hand(name, wanted):
    assert Combiner.of(PPOConfig(combine=name, safety_weight=0.25, multiplier=3.0))(SCORES).tolist() == wanted


def test_the_price_follows_the_cost_and_survives_a_new_start():
    config = PPOConfig(combine="lagrangian", multiplier=2.0, multiplier_rate=0.1, cost_limit=0.5)
    combiner = Combiner.of(config)
    assert combiner.follow(-1.5) == {"reward/multiplier": 2.0}  # the price that the batch was scored with
    assert combiner.multiplier == pytest.approx(2 * math.exp(0.2))  # cost 1.5, 1 above its limit
    again = Combiner.of(config)
    again.load_state_dict(combiner.state_dict())
    assert again.follow(0.0) == {"reward/multiplier": combiner.multiplier}


@pytest.mark.parametrize("name", ["piecewise", "weighted", "helpfulness", "safety"])
def test_the_others_remember_nothing(name):
    combiner = Combiner.of(PPOConfig(combine=name))
    assert combiner.follow(-9.0) == {}
    assert combiner.multiplier == 1.0
