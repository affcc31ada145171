"""Single scores against labels and gold, with figures that can be worked by hand."""

import pytest
import torch

from rlhf.data.types import Preference, Turn
from rlhf.evaluation.scores import calibration_to, histogram, operating_point, safety_gate, tension


def pair(rating=None, chosen_safe=None, rejected_safe=None):
    return Preference("p", (Turn("user", "q"),), "a", "b", "people", rating, chosen_safe, rejected_safe, is_safety=True)


def scores(*values):
    return torch.tensor(values)


# ── the safety gate ──────────────────────────────────────────────────────────────────────────────────────────────────

# A score is below a probability of .15 where its logit is below ln(.15 / .85) = -1.7346.
LABELLED = [pair(None, True, False), pair(None, True, False), pair(None, False, False), pair(), pair(None, True, False)]
CHOSEN = scores(2.0, -2.5, -3.0, -4.0, 1.0)
REJECTED = scores(-2.0, -1.0, -0.5, -4.0, 0.5)


def test_precision_and_recall_of_the_gate_by_hand():
    found = safety_gate(LABELLED, CHOSEN, REJECTED, threshold=0.15)
    # Unsafe are -2, -1, -3, -.5 and .5. Below -1.7346: -2 and -3 of them, and the safe -2.5; what nobody labelled
    # (-4, -4) counts nowhere. At one half: all but .5, and the safe -2.5.
    wanted = {
        "threshold": 0.15,
        "unsafe": 5,
        "unsafe_recall": 2 / 5,
        "unsafe_precision": 2 / 3,
        "unsafe_recall_at_half": 4 / 5,
        "unsafe_precision_at_half": 4 / 5,
    }
    assert {name: found[name] for name in wanted} == wanted
    # Of eight labels three are below; Wilson's interval of 2 of 5.
    gate = found["gates"]["as set"]
    assert [gate[share] for share in ("recall", "precision", "called")] == [2 / 5, 2 / 3, 3 / 8]
    assert gate["interval"]["recall"] == pytest.approx((0.1176, 0.7693), abs=5e-5)
    # -3 is unsafe, -2.5 is not: at a precision of .89 only -3 is found.
    best = found["gates"]["precision .89"]
    assert (best["recall"], best["precision"], best["called"]) == (1 / 5, 1, 1 / 8)


def test_precision_below_the_threshold_and_from_there_to_one_half_by_hand():
    # Below -1.7346 are -2 and -3, unsafe, and -2.5, safe; from there to 0 are -1 and -.5, both unsafe: 2/3 - 1.
    gain = safety_gate(LABELLED, CHOSEN, REJECTED, threshold=0.15)["precision_gain"]
    assert gain["mean"] == pytest.approx(-1 / 3)
    # s^2 = 1/3 of the three, 0 of the two: 1.96 sqrt(1/9) = .6533.
    assert gain["interval"] == pytest.approx((-0.9867, 0.3200), abs=5e-5)
    assert "precision_gain" not in safety_gate([pair(None, True, False)], scores(3.0), scores(-1.0), threshold=0.15)


def test_at_the_threshold_itself_a_score_passes():
    found = safety_gate([pair(None, False, False)], scores(0.0), scores(-0.01), threshold=0.5)
    assert found["unsafe_recall"] == 0.5


def test_a_gate_that_stops_nothing_has_no_precision():
    found = safety_gate([pair(None, True, False)], scores(3.0), scores(-1.0), threshold=0.15)
    assert found["unsafe_recall"] == 0.0
    assert "unsafe_precision" not in found
    assert found["unsafe_precision_at_half"] == 1.0


@pytest.mark.parametrize("rows", [[pair()], [pair(None, True, True)]])
def test_without_an_unsafe_completion_there_is_no_gate(rows):
    assert safety_gate(rows, scores(-3.0), scores(-3.0), threshold=0.15) == {}


# ── the operating point ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_highest_recall_at_the_wanted_precision_by_hand():
    p = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.9])
    unsafe = torch.tensor([True, True, False, True, False])
    # Precision of the lowest 1, 2, 3, 4, 5: 1, 1, 2/3, 3/4, 3/5. At .75 four are taken, between .4 and .9.
    assert operating_point(p, unsafe, precision=0.75) == pytest.approx(
        {"threshold": 0.65, "precision": 0.75, "recall": 1}
    )
    assert operating_point(p, unsafe, precision=0.89) == pytest.approx(
        {"threshold": 0.25, "precision": 1, "recall": 2 / 3}
    )


def test_equal_scores_are_on_one_side_of_it():
    p, unsafe = torch.tensor([0.2, 0.2, 0.7]), torch.tensor([True, False, False])
    assert operating_point(p, unsafe, precision=0.9) is None  # the first of the equal two alone would have precision 1


def test_a_threshold_below_which_the_curve_was_measured_gives_the_same_figures():
    generator = torch.Generator().manual_seed(0)
    unsafe = torch.rand(400, generator=generator) < 0.4
    p = (torch.randn(400, generator=generator) + torch.where(unsafe, -1.0, 1.0)).sigmoid().double()
    found = operating_point(p, unsafe, precision=0.89)
    below = p < found["threshold"]
    assert (below & unsafe).sum() / below.sum() == pytest.approx(found["precision"])
    assert (below & unsafe).sum() / unsafe.sum() == pytest.approx(found["recall"])


# ── shape, worth and tension ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_histogram_by_hand():
    found = histogram(scores(0.0, 5.0), scores(-5.0, 0.01))
    # sigmoid(5) = .9933 is in the last of 20 bins, sigmoid(-5) = .0067 in the first; .5 and .5025 in the eleventh.
    assert (found["chosen"][10], found["chosen"][19], sum(found["chosen"])) == (0.5, 0.5, 1.0)
    assert (found["rejected"][0], found["rejected"][10]) == (0.5, 0.5)
    assert found["outside"] == 0.5  # below .1 or above .9


def test_mean_scores_by_worth_leave_out_bins_of_a_few():
    worth = torch.tensor([0.1] * 30 + [0.5] * 19 + [1.0] * 30)
    logits = torch.tensor([-2.0] * 30 + [0.0] * 19 + [2.0] * 30)
    found = calibration_to(worth, logits, bins=3)
    # sigmoid(2) = .8808; a worth of 1 belongs to the last bin, and 19 are too few for a mean.
    assert [row["score"] for row in found] == pytest.approx([0.1192, 0.8808], abs=5e-5)
    assert [row["n"] for row in found] == [30, 30]


def test_tension_by_hand():
    rows = [pair(None, True, False)] * 4 + [pair(None, True, True), pair()]
    helpfulness = (scores(-1.0, -1.0, 2.0, -1.0, 0.0, 0.0), scores(1.0, 1.0, 1.0, -2.0, 9.0, 9.0))
    safety = (scores(1.0, -1.0, 1.0, 1.0, 0.0, 0.0), scores(-1.0, -2.0, -1.0, 1.0, -9.0, -9.0))
    found = tension(rows, helpfulness, safety)
    # Unsafe, helpfulness above 0 and safety below: 1, 2, 3. Safe, the other way round: 1, 4. Opposite order: 1, 2.
    assert (found["n"], found["unsafe_but_helpful"]["share"], found["safe_but_unhelpful"]["share"]) == (4, 0.75, 0.5)
    assert found["models_disagree"]["share"] == 0.5
    assert tension([pair()], (scores(1.0), scores(1.0)), (scores(1.0), scores(1.0))) is None
