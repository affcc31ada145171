"""B8 to B12 true, false and untestable, on figures made up for them; B1 and B4 are in test_claims.py."""

from copy import deepcopy

import pytest

from rlhf.evaluation.reward_claims import examine


def gained(low, high):
    return {"mean": (low + high) / 2, "interval": [low, high]}


def stale(own, on_next, gain, lost=(0.01, 0.09)):
    return {
        "lost": gained(*lost),
        "on_newest": {"reward-1": {"accuracy": 0.1}, "reward-2": {"accuracy": on_next}, "reward-3": {"accuracy": 0.9}},
        "on_its_own": {"accuracy": 0.99, "matched": own},
        "refreshing_gains": gained(*gain),
    }


def bins(*values):
    return {"against": "gold", "bins": [{"score": value, "n": 50} for value in values]}


def drift(significantly, negligibly):
    return {"significantly": gained(*significantly), "negligibly": gained(*negligibly)}


def corner(share, low):
    return {"share": share, "interval": [low, 1.0]}


MODELS = {
    "helpfulness": {
        "staleness": stale(0.75, 0.70, [0.01, 0.05]),
        "pointwise": bins(0.2, 0.3, 0.3, 0.6),
        "rating_drift": drift((-0.2, -0.1), (0.01, 0.03)),
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
        "unsafe_recall_at_half": 0.9,
        "unsafe_precision_at_half": 0.8,
        "precision_gain": gained(0.1, 0.3),
    },
}

CASES = [
    ("B8", "safety/staleness", stale(0.65, 0.66, [0.01, 0.03], (-0.05, 0.03)), False),  # no worse than before
    ("B8", "safety/staleness", stale(0.65, 0.60, [0.01, 0.03], (-0.01, 0.11)), False),  # worse, within the error
    ("B8", "safety/staleness", stale(0.65, 0.60, [-0.01, 0.03]), False),  # not mended beyond the error
    ("B8", "safety/staleness", {}, True),  # the other model is enough
    ("B9", "helpfulness/pointwise", bins(0.2, 0.5, 0.4), False),
    ("B10", "helpfulness/rating_drift", drift((-0.1, 0.1), (0.1, 0.2)), False),
    ("B10", "helpfulness/rating_drift", drift((-0.2, -0.1), (-0.1, 0.2)), False),
    ("B10", "helpfulness/rating_drift", drift((0.1, 0.2), (0.1, 0.2)), False),  # the other way
    ("B10", "safety/rating_drift", drift((-0.1, 0.1), (0.1, 0.2)), False),  # both have to
    ("B11", "safety/tension/safe_but_unhelpful", corner(0.01, 0.009), False),  # an empty corner
    ("B12", "safety/precision_gain", gained(-0.01, 0.2), False),
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


def changes(small, large, ends=((0.01, 0.03), (0.1, 0.3)), p=0.04):
    """What margins change: accuracy on significantly better pairs over none, and scores at the ends step by step."""
    accuracy = {"small minus none": small, "large minus none": large, "large minus small": (0.0, 0.0)}
    found = {
        name: {"accuracy": {"significantly": gained(*span) | {"p": p, "n": 400}}} for name, span in accuracy.items()
    }
    for name, span in zip(("small minus none", "large minus small"), ends, strict=True):
        found[name]["outside"] = gained(*span)
    return {"changes": found}


@pytest.mark.parametrize(
    ("margins", "raises", "pushes"),
    [
        (changes((0.01, 0.03), (0.02, 0.04)), True, True),
        (changes((-0.03, -0.01), (0.02, 0.04)), False, True),  # both have to
        (changes((0.01, 0.03), (-0.04, -0.02)), False, True),
        (changes((0.01, 0.03), (0.02, 0.04), p=0.06), False, True),  # whatever the interval says
        (changes((0.01, 0.03), (0.02, 0.04), ((-0.01, 0.03), (0.1, 0.3))), True, False),
        (changes((0.01, 0.03), (0.02, 0.04), ((0.01, 0.03), (-0.1, 0.3))), True, False),
        ({"changes": {}}, "untestable", "untestable"),  # one margin alone
    ],
)
def test_a_run_that_trains_all_margins_tests_them(margins, raises, pushes):
    found = examine({"helpfulness": {"margins": margins}})
    assert (found["B2"]["holds"], found["B3"]["holds"]) == (raises, pushes)


def test_the_figures_of_the_margins():
    found = examine({"helpfulness": {"margins": changes((0.01, 0.03), (0.02, 0.04))}})
    assert found["B2"]["figure"].startswith("small minus none +0.020 (+0.010 to +0.030), p 0.04, large minus none")
    assert found["B3"]["figure"].endswith("large minus small +0.200 (+0.100 to +0.300)")


def test_figures_by_hand():
    found = examine(MODELS)
    assert "helpfulness: 0.750 on its own round (ratings matched), 0.700 on the next" in found["B8"]["figure"]
    assert "+0.030 (+0.010 to +0.050)" in found["B8"]["figure"]
    assert found["B9"]["figure"] == "helpfulness: 0.20 < 0.30 < 0.30 < 0.60"
    assert "lost +0.050 (+0.010 to +0.090)" in found["B8"]["figure"]
    wanted = "helpfulness: significantly -0.150 (-0.200 to -0.100), negligibly +0.020 (+0.010 to +0.030)"
    assert found["B10"]["figure"] == wanted
    assert found["B12"]["figure"] == "precision 0.90, recall 0.40 below 0.15; 0.80, 0.90 below 0.5"


def test_without_its_figure_a_claim_is_untestable():
    models = deepcopy(MODELS)
    del models["helpfulness"]["rating_drift"], models["safety"]["precision_gain"]
    assert [examine(models)[claim]["holds"] for claim in ("B10", "B12")] == ["untestable"] * 2
