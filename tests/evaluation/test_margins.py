"""Models of several margins on the same pairs, with scores chosen so that every figure can be worked by hand."""

import pytest
import torch

from rlhf.data.types import Preference, Turn
from rlhf.evaluation.margins import compare

ROWS = [
    Preference("p", (Turn("user", "q"),), "a", "b", "people", rating, None, None, is_safety=False)
    for rating in ("significantly", "significantly", "slightly", "negligibly")
]
# Below 0.1 and above 0.9 are logits beyond 2.1972.
SCORES = {
    "large": (torch.tensor([3.0, 3.0, 3.0, 0.0]), torch.tensor([-3.0, 0.0, 0.0, 3.0])),
    "none": (torch.tensor([1.0, 0.0, 2.19, 1.0]), torch.tensor([0.0, 1.0, 0.0, 0.0])),
    "small": (torch.tensor([2.2, 1.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 0.0, 0.0])),
}


def test_margins_beside_one_another_by_hand():
    found = compare(ROWS, SCORES)
    assert list(found["models"]) == ["none", "small", "large"]  # in the order of Table 27, however they were named
    accuracy = {margin: row["accuracy"] for margin, row in found["models"].items()}
    assert [accuracy[margin]["significantly"] for margin in accuracy] == [0.5, 1.0, 1.0]
    assert [accuracy[margin]["negligibly"] for margin in accuracy] == [1.0, 1.0, 0.0]
    assert [row["outside"] for row in found["models"].values()] == [0.0, 1 / 8, 5 / 8]


def test_changes_are_of_the_larger_margin_and_pair_by_pair():
    changes = compare(ROWS, SCORES)["changes"]
    assert list(changes) == ["small minus none", "large minus none", "large minus small"]
    assert changes["small minus none"]["accuracy"]["significantly"]["mean"] == 0.5
    # Right, wrong, right, right against all but the last: one won, one lost.
    assert changes["large minus none"]["accuracy"]["all"] == {
        "mean": 0.0,
        # Differences 0 1 0 -1: s^2 = 2/3, 1.96 sqrt(2/3/4) = .8002.
        "interval": pytest.approx((-0.8002, 0.8002), abs=5e-5),
        "p": 1.0,
        "n": 4,
    }
    assert changes["large minus small"]["outside"]["mean"] == pytest.approx(4 / 8)
    # Of eight completions five are outside with the large margin, the one of the small margin among them: s^2 = 2/7.
    assert changes["large minus small"]["outside"]["interval"] == pytest.approx((0.1296, 0.8704), abs=5e-5)


def test_one_margin_has_nothing_beside_it():
    found = compare(ROWS, {"small": SCORES["small"]})
    assert (list(found["models"]), found["changes"]) == (["small"], {})
