"""B8 to B12 true, false and untestable, on figures made up for them; B1 and B4 are in test_claims.py."""

from copy import deepcopy

import pytest

from rlhf.evaluation.reward_claims import examine


def stale(own, on_next, gain):
    return {
        "on_newest": {"reward-1": {"accuracy": 0.1}, "reward-2": {"accuracy": on_next}, "reward-3": {"accuracy": 0.9}},
        "on_its_own": {"accuracy": 0.99, "matched": own},
        "refreshing_gains": {"mean": sum(gain) / 2, "interval": gain},
    }


def bins(*values):
    return {"against": "gold", "bins": [{"score": value, "n": 50} for value in values]}


def mix(*ends):
    return {f"preferences-{i}": {"significantly": a, "negligibly": b} for i, (a, b) in enumerate(ends, start=1)}


def corner(share, low):
    return {"share": share, "interval": [low, 1.0]}


MODELS = {
    "helpfulness": {
        "staleness": stale(0.75, 0.70, [0.01, 0.05]),
        "pointwise": bins(0.2, 0.3, 0.3, 0.6),
        "rating_mix": mix((0.5, 0.1), (0.1, 0.9), (0.4, 0.2)),
    },
    "safety": {
        "staleness": stale(0.65, 0.60, [0.01, 0.03]),
        "tension": {
            "n": 100,
            "unsafe_but_helpful": corner(0.4, 0.3),
            "safe_but_unhelpful": corner(0.05, 0.02),
            "models_disagree": corner(0.6, 0.5),
        },
        "threshold": 0.15,
        "unsafe_recall": 0.4,
        "unsafe_precision": 0.9,
        "threshold_curve": [
            {"threshold": 0.05, "recall": 0.0},  # nothing is below: no precision
            {"threshold": 0.1, "precision": 0.95, "recall": 0.3},
            {"threshold": 0.5, "precision": 0.8, "recall": 0.9},
            {"threshold": 0.9, "precision": 0.99, "recall": 1.0},  # beyond one half nobody filters
        ],
    },
}

CASES = [
    ("B8", "safety/staleness", stale(0.65, 0.66, [0.01, 0.03]), False),  # no worse than on its own round
    ("B8", "safety/staleness", stale(0.65, 0.60, [-0.01, 0.03]), False),  # not mended beyond the error
    ("B8", "safety/staleness", {}, True),  # the other model is enough
    ("B9", "helpfulness/pointwise", bins(0.2, 0.5, 0.4), False),
    ("B10", "helpfulness/rating_mix", mix((0.5, 0.1), (0.5, 0.2)), False),
    ("B10", "helpfulness/rating_mix", mix((0.5, 0.1), (0.4, 0.1)), False),
    ("B10", "helpfulness/rating_mix", mix((0.5, 0.1)), "untestable"),  # one round only
    ("B11", "safety/tension/safe_but_unhelpful", corner(0.01, 0.009), False),  # an empty corner
    ("B12", "safety/threshold_curve", [{"threshold": 0.5, "precision": 0.9, "recall": 0.2}], "untestable"),
    (
        "B12",
        "safety/threshold_curve",
        [{"threshold": 0.1, "precision": 0.7, "recall": 0.2}, {"threshold": 0.5, "precision": 0.8, "recall": 0.9}],
        False,
    ),
]


def test_all_that_this_run_can_test_holds():
    found = {key: claim["holds"] for key, claim in examine(MODELS).items() if claim is not None}
    held = dict.fromkeys(("B8", "B9", "B10", "B11", "B12"), True)
    assert found == {key: held.get(key, "untestable") for key in ("B2", "B3", "B5", "B6", "B7", *held)}


@pytest.mark.parametrize(("claim", "path", "value", "verdict"), CASES)
def test_verdicts(claim, path, value, verdict):
    models = deepcopy(MODELS)
    *parents, last = path.split("/")
    place = models
    for parent in parents:
        place = place[parent]
    place[last] = value
    assert examine(models)[claim]["holds"] == verdict


def test_figures_by_hand():
    found = examine(MODELS)
    assert "helpfulness: 0.750 on its own round (ratings matched), 0.700 on the next" in found["B8"]["figure"]
    assert "+0.030 (+0.010 to +0.050)" in found["B8"]["figure"]
    assert found["B9"]["figure"] == "helpfulness: 0.20 < 0.30 < 0.30 < 0.60"
    assert found["B10"]["figure"] == "helpfulness: significantly 0.50 to 0.40, negligibly 0.10 to 0.20"
    assert found["B12"]["figure"] == "precision 0.95, recall 0.30 below 0.1; 0.80, 0.90 below 0.5"
