"""Text baselines on pairs in which words, or lengths, decide."""

import random

import torch

from rlhf.data.types import Preference, Turn
from rlhf.evaluation.baselines import bag_of_words, length_rule


def pair(chosen, rejected):
    return Preference("p", (Turn("user", "q"),), chosen, rejected, "people", None, None, None, is_safety=False)


def pairs(good, n, seed):
    """Answers of equal length in words; the chosen one holds a good word, the rejected one none."""
    rng = random.Random(seed)
    plain = ["some", "more", "words", "here", "there"]
    made = []
    for _ in range(n):
        words = [rng.choice(plain) for _ in range(4)]
        made.append(pair(" ".join([rng.choice(good), *words]), " ".join(["bad", *rng.sample(words, 4)])))
    return made


def test_a_bag_of_words_learns_which_words_win():
    gap = bag_of_words(pairs(["kind", "true"], 80, 1), pairs(["kind", "true"], 40, 2))
    assert (gap > 0).all()


def test_it_sees_no_side():
    """The same pair the other way round has the same gap with the other sign: no side is preferred."""
    train, test = pairs(["kind"], 41, 1), pairs(["kind"], 9, 2)
    turned = [pair(row.rejected, row.chosen) for row in test]
    torch.testing.assert_close(bag_of_words(train, turned), -bag_of_words(train, test))


def test_it_knows_nothing_of_words_it_has_not_seen():
    assert (bag_of_words(pairs(["kind"], 20, 1), [pair("alpha", "gamma")]) == 0).all()
    assert (bag_of_words([pair("one", "two")], [pair("one", "two")]) == 0).all()  # no word occurs twice


def test_the_length_rule_is_the_one_that_wins_in_training():
    long, short = pair("aaaa", "b"), pair("a", "bbb")
    rule, gap = length_rule([long, long, short], [long, short])
    assert (rule, gap.tolist()) == ("longer wins", [3.0, -2.0])
    rule, gap = length_rule([long, short, short], [long, short])
    assert (rule, gap.tolist()) == ("shorter wins", [-3.0, 2.0])
