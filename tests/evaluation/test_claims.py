"""Every claim true, false and absent, on results that were made up for it."""

from copy import deepcopy

import pytest

from rlhf.evaluation.claims import examine

RATED = {"significantly": 0.94, "better": 0.76, "slightly": 0.66, "negligibly": 0.55, "all": 0.70}


def measured(accuracy, own=None):
    row = {"accuracy": accuracy, "pairs": {"all": 1000}}
    return row | ({"gain_over_other": {"mean": sum(own) / 2, "interval": own}} if own else {})


def policy(quality, p10, tail=None, **gains):
    """A policy's row; `gains` by earlier policy: low end and high end of the gain in gold quality, `tail` over SFT."""
    gained = {name.replace("_", "-"): {"mean": sum(ends) / 2, "interval": ends} for name, ends in gains.items()}
    row = {"gold_quality": quality, "gold_gain": gained, "reward_p10": p10, "n": 400}
    return row | ({"p10_gain": {"sft": {"difference": sum(tail) / 2, "interval": tail}}} if tail else {})


# A run in which everything that can be tested holds.
RESULTS = {
    "reward_models": {
        "helpfulness": {"helpfulness": measured(RATED, (0.12, 0.16)), "safety": measured({**RATED, "all": 0.63})},
        "safety": {
            "helpfulness": measured({**RATED, "all": 0.56}),
            "safety": measured({**RATED, "all": 0.65}, (0.01, 0.03)),
        },
    },
    "policies": {
        "base": policy(0.1, -5.0),
        "sft": policy(0.5, -2.0),
        "rejection-1": policy(0.3, -9.0, sft=(-0.3, -0.1)),  # only the last round counts
        "rejection-2": policy(0.6, -1.0, (0.6, 1.4), sft=(0.07, 0.13), rejection_1=(0.2, 0.4)),
        "gatt": policy(0.5, -9.0, sft=(-0.2, 0.2), rejection_2=(-0.2, 0.0)),
        "ppo": policy(0.7, -0.5, sft=(-0.1, 0.5), rejection_2=(-0.1, 0.3), gatt=(0.15, 0.25)),
    },
    "best_of": {
        "sft": {
            "1": {"max": 0.0, "median": 0.0},
            "2": {"max": 0.6, "median": 0.1},
            "16": {"max": 2.0, "median": -0.2},
        }
    },
    "temperature": {  # within .02 of the best of 16: up to 1.0 before RLHF, up to 1.4 after it
        "sft": {"0.6": {"1": 0.5, "16": 1.0}, "1": {"1": 0.4, "16": 1.01}, "1.4": {"1": 0.0, "16": 0.5}},
        "ppo": {"0.6": {"1": 0.6, "16": 1.2}, "1": {"1": 0.5, "16": 1.5}, "1.4": {"1": 0.4, "16": 1.49}},
    },
    "multi_turn": {"n": 48, "before": {"2": 0.9, "20": 0.1}, "after": {"2": 1.0, "20": 0.98}},
}
TESTABLE = ("B1", "B4", "B13", "B14", "B15", "B16", "B19", "B28")


def changed(path, value):
    """RESULTS with the value at a path ("policies/sft/n") replaced, or left out where it is None."""
    results = deepcopy(RESULTS)
    *parents, last = path.split("/")
    place = results
    for parent in parents:
        place = place[parent]
    if value is not None:
        place[last] = value
        return results
    del place[last]
    for row in results["policies"].values():  # what is not in the table is not compared with, either
        row["gold_gain"].pop(last, None)
        row.get("p10_gain", {}).pop(last, None)
    return results


def test_all_that_can_hold_holds_and_the_rest_says_what_it_would_take():
    found = examine(RESULTS)
    assert list(found) == [f"B{i}" for i in (*range(1, 20), 21, 28)]
    for key, claim in found.items():
        assert claim["holds"] is True if key in TESTABLE else claim["holds"] == "untestable", key
        assert claim.keys() == {"holds", "claim", "figure", "evidence"}
        assert claim["claim"]
        assert claim["evidence"]
        assert bool(claim["figure"]) == (key in TESTABLE)


# (claim, what is changed, to what), so little that it still would hold, or just so much that it does not
HELD = [
    ("B1", "reward_models/helpfulness/safety", measured({"all": 0.63})),  # of another domain
    ("B1", "reward_models/safety/safety/accuracy", {"better": 0.7, "all": 0.65}),  # not all ratings were given
    ("B4", "reward_models/safety/safety/gain_over_other/interval", (0.0001, 0.1)),
    ("B13", "best_of/sft/16", {"max": 2.0, "median": 0.99}),  # a drift of less than half the rise
    ("B14", "policies/rejection-2", policy(0.6, -1.0, (0.1, 2.0), sft=(0.0001, 0.2))),
    ("B15", "temperature/ppo/1.4/16", 1.481),
    ("B16", "policies/rejection-2/p10_gain/sft/interval", (0.001, 2.0)),
    ("B19", "policies/ppo", policy(0.7, -0.5, gatt=(0.0001, 0.4))),
    ("B28", "multi_turn/before/2", 0.8),
    ("B28", "multi_turn/before/20", 0.2),
    ("B28", "multi_turn/before", {"2": 0.9, "4": 0.9, "6": 0.2, "20": 0.9}),  # forgotten by turn 6
    ("B28", "multi_turn/after/20", 0.95),
    ("B28", "multi_turn/after/2", 0.0),  # the last turn is the test
]
FAILED = [
    ("B1", "reward_models/safety/safety/accuracy/slightly", 0.77),  # above "better", in one of the models
    ("B1", "reward_models/helpfulness/helpfulness/accuracy/negligibly", 0.66),  # as accurate as "slightly"
    ("B1", "reward_models/helpfulness/helpfulness/accuracy/significantly", 0.75),
    ("B4", "reward_models/safety/safety/gain_over_other/interval", (0.0, 0.1)),
    ("B4", "reward_models/helpfulness/helpfulness/gain_over_other/interval", (-0.1, 0.3)),
    ("B13", "best_of/sft/2", {"max": -0.1, "median": 0.0}),  # the maximum falls in between
    ("B13", "best_of/sft/16", {"max": 2.0, "median": 1.0}),
    ("B13", "best_of/sft/16", {"max": 2.0, "median": -1.0}),
    ("B14", "policies/rejection-2", policy(0.6, -1.0, (0.1, 2.0), sft=(0.0, 0.2))),  # the interval touches no gain
    ("B14", "policies/rejection-2", policy(0.4, -1.0, (0.1, 2.0), sft=(-0.15, -0.05))),
    ("B15", "temperature/ppo/1.4/16", 1.479),  # RLHF bears no more than SFT did
    ("B15", "temperature/ppo/1/1", 0.7),  # one sample wants what sixteen want
    ("B16", "policies/rejection-2/p10_gain/sft/interval", (-0.1, 2.0)),  # higher, but not beyond the error
    ("B19", "policies/ppo", policy(0.7, -0.5, sft=(0.1, 0.3), gatt=(-0.01, 0.4))),  # over SFT alone is not enough
    ("B19", "policies/ppo", policy(0.4, -0.5, gatt=(-0.2, -0.1))),
    ("B28", "multi_turn/after/20", 0.94),
]
VOID = [
    ("before/20", 0.21),  # what is not forgotten cannot be kept
    ("before", {"2": 0.9, "4": 0.0, "6": 0.21, "20": 0.0}),  # nor what is forgotten later
    ("before/2", 0.79),  # what was never followed cannot be forgotten
]
ABSENT = [
    ("B1", "reward_models", {}),
    ("B4", "reward_models", {"helpfulness": RESULTS["reward_models"]["helpfulness"]}),
    ("B4", "reward_models/helpfulness/helpfulness/gain_over_other", None),
    ("B13", "best_of", None),
    ("B13", "best_of/sft", None),
    ("B14", "policies/sft", None),
    ("B14", "policies/rejection-2", {"reward_p10": 0.0, "n": 3}),  # no gold judge
    ("B14", "policies/rejection-2/gold_gain/sft", None),
    ("B15", "temperature", {}),
    ("B15", "temperature/sft", None),
    ("B16", "policies/sft", None),
    ("B19", "policies/ppo", None),
    ("B19", "policies/ppo", policy(0.7, -0.5)),
    ("B28", "multi_turn", {}),
    ("B28", "multi_turn/after", None),
]


@pytest.mark.parametrize(("claim", "path", "value"), HELD)
def test_it_still_holds(claim, path, value):
    assert examine(changed(path, value))[claim]["holds"] is True


@pytest.mark.parametrize(("claim", "path", "value"), FAILED)
def test_it_does_not_hold(claim, path, value):
    found = examine(changed(path, value))
    assert found[claim]["holds"] is False
    others = set(TESTABLE) - {claim} - ({"B19"} if path == "policies/rejection-2" else set())
    assert all(found[other]["holds"] is True for other in others)


@pytest.mark.parametrize(("path", "value"), VOID)
def test_a_policy_that_forgets_nothing_is_no_test_of_what_keeps_it(path, value):
    found = examine(changed(f"multi_turn/{path}", value))["B28"]
    assert found["holds"] == "untestable"
    assert found["evidence"].startswith("void: before Ghost Attention it has to be >= 0.8, then <= 0.2; before: turn 2")


@pytest.mark.parametrize(("claim", "path", "value"), ABSENT)
def test_what_was_not_measured_is_not_claimed(claim, path, value):
    found = examine(changed(path, value))
    assert claim not in found
    assert {"B2", "B7", "B21"} <= set(found)


@pytest.mark.parametrize("path", ["policies/rejection-1", "policies/base"])
def test_what_a_claim_does_not_name_is_not_needed(path):
    assert examine(changed(path, None)) == examine(RESULTS)


def test_without_rejection_sampling_nothing_is_said_of_it():
    results = deepcopy(RESULTS)
    results["policies"] = {name: row for name, row in results["policies"].items() if not name.startswith("rejection")}
    assert {"B14", "B16"}.isdisjoint(examine(results))


def test_ppo_is_held_against_the_policy_it_started_from():
    assert "PPO improves on gatt" in examine(RESULTS)["B19"]["claim"]
    results = changed("policies/gatt", None)
    results["policies"]["ppo"] = policy(0.7, -0.5, rejection_2=(0.05, 0.15))
    found = examine(results)["B19"]
    assert found["holds"] is True
    assert "PPO improves on rejection-2" in found["claim"]


def test_nothing_measured_nothing_claimed():
    found = examine({})
    assert list(found) == [f"B{i}" for i in (2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 17, 18, 21)]
    assert {claim["holds"] for claim in found.values()} == {"untestable"}


def test_figures_by_hand():
    found = examine(RESULTS)
    assert "helpfulness: 0.940 > 0.760 > 0.660 > 0.550" in found["B1"]["figure"]
    assert found["B4"]["figure"] == "helpfulness +0.140 (+0.120 to +0.160), safety +0.020 (+0.010 to +0.030)"
    assert found["B13"]["figure"] == "N=1 to 16: max 0.00 to 2.00, median 0.00 to -0.20"
    assert found["B14"]["figure"] == "0.500 to 0.600"
    assert "400 held-out prompts: +0.100, 95% interval +0.070 to +0.130" in found["B14"]["evidence"]
    assert found["B28"]["figure"] == "before: turn 2 0.90, turn 20 0.10; after: turn 20 0.98"
    assert "48" in found["B28"]["evidence"]
