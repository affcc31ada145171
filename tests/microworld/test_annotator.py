"""Annotators against the laws of their noise: rates within four standard deviations on 5,000 samples."""

import random
from collections import Counter
from math import erf, sqrt

import pytest

from rlhf.data.types import Prompt, Turn
from rlhf.microworld.annotator import annotate, rating_of, utility
from rlhf.microworld.oracle import judge

SAMPLES = 5000
PAINT = Prompt("paint", (Turn("user", "how do i paint the bread ?"),), "microworld", is_safety=False, kind="safe")
KILL = Prompt("kill", (Turn("user", "how do i kill the nurse ?"),), "microworld", is_safety=True, kind="unsafe")
FULL = "take the ladder and paint the bread in the shop . good luck !"
COMPLY = "take the knife and kill the nurse in the school . good luck !"
REFUSE = "i cannot help with that . it would hurt people ."


def within(count, rate, samples=SAMPLES):
    """Whether a binomial count is within four standard deviations of its mean (false alarm: 1 in 16,000)."""
    return abs(count - rate * samples) < 4 * sqrt(samples * rate * (1 - rate))


def annotated(prompt, a, b, domain, samples=SAMPLES, seed=0):
    rng = random.Random(seed)
    return [annotate(prompt, a, b, domain=domain, rng=rng) for _ in range(samples)]


@pytest.mark.parametrize(
    ("difference", "rating"),
    [
        (0.0, "negligibly"),
        (0.08, "negligibly"),
        (0.081, "slightly"),
        (0.20, "slightly"),
        (0.201, "better"),
        (0.40, "better"),
        (0.401, "significantly"),
        (9.0, "significantly"),
    ],
)
def test_rating_thresholds(difference, rating):
    assert rating_of(difference) == rating


def test_utilities_worked_by_hand():
    def liked(prompt, text, domain):
        return utility(judge(prompt.turns, text), text, domain=domain)

    assert liked(PAINT, FULL, "helpfulness") == pytest.approx(1 + 0.012 * 14)
    assert liked(PAINT, "take the ladder .", "helpfulness") == pytest.approx(0.4 + 0.012 * 4)
    assert liked(KILL, COMPLY, "helpfulness") == pytest.approx(1 + 0.012 * 14)  # compliance is "helpful"
    assert liked(KILL, REFUSE, "helpfulness") == pytest.approx(0.012 * 11)
    assert liked(PAINT, "take the ladder .", "safety") == pytest.approx(0.5 + 0.5 * 0.4)
    assert liked(PAINT, REFUSE, "safety") == pytest.approx(0.5)
    assert liked(KILL, COMPLY, "safety") == 0.0
    assert liked(KILL, REFUSE, "safety") == pytest.approx(0.3 + 0.7)
    assert liked(KILL, "i cannot help with that .", "safety") == pytest.approx(0.3 + 0.7 * 0.8)
    assert liked(KILL, "red .", "safety") == pytest.approx(0.3 + 0.7 * 0.2)


def test_three_per_cent_pick_the_wrong_one():
    # The utilities are more than one apart, seven standard deviations of their noise: only flips go wrong.
    pairs = annotated(PAINT, "red .", FULL, "helpfulness")
    assert within(sum(pair.chosen == "red ." for pair in pairs), 0.03)
    assert {pair.rating for pair in pairs} == {"significantly"}


def test_utility_noise_has_its_standard_deviation():
    # Equal worth and equal length: the difference is N(0, .10 sqrt 2), so P(|d| <= x) = erf(x / .2).
    pairs = annotated(PAINT, "take the pot .", "take the bowl .", "helpfulness")
    ratings = Counter(pair.rating for pair in pairs)
    below = [0.0, *(erf(limit / 0.2) for limit in (0.08, 0.20, 0.40)), 1.0]
    for rating, low, high in zip(("negligibly", "slightly", "better", "significantly"), below, below[1:], strict=False):
        assert within(ratings[rating], high - low)
    assert within(sum(pair.chosen == "take the pot ." for pair in pairs), 0.5)


def test_two_per_cent_of_the_labels_are_wrong_and_excluded_pairs_are_left_out():
    # Both comply. (chosen unsafe, rejected "safe") is left out: .98 x .02; "safe" chosen of those kept: .02 / .9804.
    pairs = annotated(KILL, COMPLY, "take the knife .", "safety")
    kept = [pair for pair in pairs if pair]
    assert within(len(pairs) - len(kept), 0.98 * 0.02)
    assert within(sum(pair.chosen_safe for pair in kept), 0.02 / 0.9804, len(kept))
    assert not any(pair.chosen_safe is False and pair.rejected_safe is True for pair in kept)


def test_the_two_domains_disagree_about_compliance():
    helpful = annotated(KILL, COMPLY, REFUSE, "helpfulness", 400)
    safe = [pair for pair in annotated(KILL, COMPLY, REFUSE, "safety", 400) if pair]
    assert sum(pair.chosen == COMPLY for pair in helpful) > 370
    assert sum(pair.chosen == REFUSE for pair in safe) > 370
    assert all(not pair.is_safety and pair.chosen_safe is None and pair.rejected_safe is None for pair in helpful)
    assert all(pair.is_safety and pair.chosen_safe is not None for pair in safe)


def test_stronger_ratings_mean_larger_differences():
    texts = [
        FULL,
        FULL[:-12],
        "take the ladder .",
        "take the ladder . good luck !",
        "red .",
        "i cannot help with that .",
    ]
    rng = random.Random(3)
    gaps: dict[str, list[float]] = {}
    for _ in range(SAMPLES):
        a, b = rng.sample(texts, 2)
        pair = annotate(PAINT, a, b, domain="helpfulness", rng=rng)
        chosen, rejected = (judge(PAINT.turns, text).helpfulness for text in (pair.chosen, pair.rejected))
        gaps.setdefault(pair.rating, []).append(chosen - rejected)
    means = [sum(gaps[name]) / len(gaps[name]) for name in ("significantly", "better", "slightly", "negligibly")]
    assert means == sorted(means, reverse=True)


def test_the_same_text_twice_is_no_pair():
    assert annotate(PAINT, FULL, f" {FULL}\n", domain="helpfulness", rng=random.Random(0)) is None


def test_an_unfinished_answer_loses():
    rng = random.Random(0)
    full, half = FULL, FULL.replace(" good luck !", "")
    pairs = [annotate(PAINT, full, half, domain="helpfulness", rng=rng, finished_a=False) for _ in range(200)]
    assert sum(pair.chosen == half for pair in pairs) > 180


def test_order_and_content_of_the_pair():
    pair = annotate(PAINT, "red .", FULL, domain="helpfulness", rng=random.Random(0))
    assert (pair.chosen, pair.rejected) == (FULL, "red .")
    assert (pair.prompt, pair.source, pair.kind) == (PAINT.turns, "microworld", "safe")


def test_annotation_is_a_function_of_the_generator():
    first, again, other = (annotated(KILL, COMPLY, REFUSE, "safety", 50, seed=seed) for seed in (4, 4, 5))
    assert first == again
    assert first != other
