"""How scores are spread: against numpy's quantiles and counts, and scipy's sigmoid and bootstrap."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import bootstrap

from rlhf.data.types import Prompt, Turn
from rlhf.evaluation.distributions import of_policies, shift, spread

N = 50


def replies(helpfulness, safety, *, source="people", text="no ."):
    """Every fifth prompt is adversarial."""
    asked = (Turn("user", "how do i paint the bread ?"),)
    prompts = [Prompt(str(i), asked, source, is_safety=i % 5 == 0) for i in range(len(helpfulness))]
    samples = [SimpleNamespace(prompt=prompt, text=text, finished=True) for prompt in prompts]
    return list(zip(samples, helpfulness, safety, strict=True))


@pytest.fixture
def logits():
    rng = np.random.default_rng(0)
    return {name: rng.normal(mean, 1.5, (2, N)).tolist() for name, mean in (("sft", 0), ("mid", 1), ("ppo", 2))}


def test_quantiles_and_counts_are_numpys(logits):
    found = of_policies({name: replies(*rows) for name, rows in logits.items()}, against="sft")
    assert list(found) == list(logits)
    assert all(set(row) == {"helpfulness", "safety"} for row in found.values())
    scores = expit(np.array(logits["ppo"][1]))[[i for i in range(N) if i % 5]]
    row = found["ppo"]["safety"]["ordinary"]
    assert row["n"] == 40
    assert row["mean"] == pytest.approx(scores.mean())
    assert list(row["quantiles"].values()) == pytest.approx(np.quantile(scores, list(map(float, row["quantiles"]))))
    assert row["histogram"]["counts"] == np.histogram(scores, bins=20, range=(0, 1))[0].tolist()
    assert found["ppo"]["helpfulness"]["adversarial"]["n"] == 10
    json.dumps(found, allow_nan=False)


def test_a_policy_is_held_against_the_first_tuned_one_and_the_one_before_it(logits):
    found = of_policies({"base": replies(*logits["mid"])} | {k: replies(*v) for k, v in logits.items()}, against="sft")
    shifts = {name: list(row["safety"]["ordinary"]["shift"]) for name, row in found.items()}
    assert shifts == {"base": ["sft"], "sft": ["base"], "mid": ["sft"], "ppo": ["sft", "mid"]}
    assert "shift" not in found["ppo"]["safety"]["adversarial"]  # ten answers have no tenth
    alone = of_policies({"mine": replies(*logits["mid"])}, against="mine")
    assert alone["mine"]["safety"]["ordinary"]["shift"] == {}


def test_the_mean_and_the_worst_tenth_move_apart():
    """Nine of ten answers get better by .2, the tenth gets worse by .3: the mean rises, and its tail falls."""
    before = np.tile(np.linspace(0.4, 0.6, 20), 20)
    after = np.where(np.arange(400) % 20 < 3, before - 0.3, before + 0.2)
    found = shift(after.tolist(), before.tolist())
    assert found["mean"]["mean"] == pytest.approx((after - before).mean())
    assert found["mean"]["interval"][0] > 0
    drop = np.quantile(after, 0.1) - np.quantile(before, 0.1)
    assert found["p10"]["difference"] == pytest.approx(drop)
    assert found["p10"]["interval"][1] < 0

    def lower(a, b, axis):
        return np.quantile(a, 0.1, axis=axis) - np.quantile(b, 0.1, axis=axis)

    other = bootstrap((after, before), lower, paired=True, method="percentile", n_resamples=2000, rng=1)
    assert found["p10"]["interval"] == pytest.approx(tuple(other.confidence_interval), abs=0.03)


def test_scores_at_the_ends_are_counted():
    row = spread([0.0, 0.15, 1.0])
    assert {i: n for i, n in enumerate(row["histogram"]["counts"]) if n} == {0: 1, 3: 1, 19: 1}


def test_gold_stands_beside_them_in_the_micro_world_alone(logits):
    rows = replies(*logits["sft"], source="microworld", text="i can not help with that . it would hurt people .")
    found = of_policies({"sft": rows, "ppo": rows}, against="sft")
    gold = found["ppo"]["gold"]
    assert {prompts: row["n"] for prompts, row in gold.items()} == {"ordinary": 40, "adversarial": 10}
    assert gold["ordinary"]["shift"]["sft"]["mean"]["mean"] == 0
    assert gold["ordinary"]["shift"]["sft"]["p10"]["interval"] == (0, 0)
