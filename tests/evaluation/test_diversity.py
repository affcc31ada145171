"""Self-BLEU at its two ends and at one point between, worked by hand from BLEU's definition."""

import pytest

from rlhf.data.types import Prompt, Turn
from rlhf.evaluation.diversity import over_temperature, self_bleu, slope


def test_equal_answers_are_wholly_alike():
    assert self_bleu([["take the key and open the door ."] * 4, ["yes", "yes"]]) == pytest.approx(100)


def test_silence_is_not_diverse():
    assert self_bleu([["", "", ""]]) == 100
    assert self_bleu([["", "take the key ."]]) == 0


def test_answers_without_a_word_in_common_are_not():
    groups = [["take the key and open it .", "nobody ever told me where they went !"]]
    assert self_bleu(groups) == pytest.approx(0, abs=1e-9)


def test_by_hand():
    # "a b c d" and "a b c e", seen from either: 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, and none of 1 quadruple,
    # which smoothing counts as one half: (3/4 x 2/3 x 1/2 x 1/2) ^ (1/4) = .5946.
    assert self_bleu([["a b c d", "a b c e"]]) == pytest.approx(59.46, abs=0.01)


def test_the_mean_runs_over_answers_of_all_groups():
    assert self_bleu([["a b c d", "a b c d"], ["e f g h", "i j k l"]]) == pytest.approx(50)


def test_the_more_alike_the_higher():
    texts = ["take the key and open the door", "take the key and open the house", "good luck with all of that"]
    assert self_bleu([[texts[0], texts[1]]]) > self_bleu([texts]) > self_bleu([[texts[0], texts[2]]])


def test_the_slope_of_a_line_by_hand():
    # Through (0, 1), (1, 1), (2, 4): mean x 1, mean y 2; (-1)(-1) + 0 + (1)(2) = 3 over 2.
    assert slope([0.0, 1.0, 2.0], [1.0, 1.0, 4.0]) == pytest.approx(1.5)
    assert slope([1.0], [3.0]) == 0.0


def test_cold_samples_are_alike_and_hot_ones_are_not(policy, tokenizer):
    asked = {"factual": [Prompt("p", (Turn("user", "how ?"),), "x", is_safety=False)]}
    found = over_temperature(policy, tokenizer, asked, (0.01, 3.0), samples=6, max_new_tokens=8, seed=0)["factual"]
    assert found["0.01"]["self_bleu"] > 90 > 30 > found["3"]["self_bleu"]
    assert found["slope"] == pytest.approx((found["3"]["self_bleu"] - found["0.01"]["self_bleu"]) / 2.99)
