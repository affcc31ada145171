"""Margins and the ranking loss: the paper's table, numbers by hand, and what the gradient pulls at."""

import pytest
import torch

from rlhf.functional.margin import MARGINS, margin_of, ranking_loss

RATINGS = ("significantly", "better", "slightly", "negligibly")


@pytest.mark.parametrize(
    ("table", "expected"),
    [("none", [0, 0, 0, 0]), ("small", [1, 2 / 3, 1 / 3, 0]), ("large", [3, 2, 1, 0])],
)
def test_margins_are_those_of_table_27(table, expected):
    assert [margin_of(rating, table=table, unrated=9.0) for rating in RATINGS] == expected


def test_a_pair_without_a_rating_gets_the_margin_the_caller_chose():
    assert margin_of(None, table="large", unrated=0.25) == 0.25


def test_a_number_goes_before_the_rating_and_none_leaves_equation_1():
    assert margin_of("slightly", table="large", unrated=9.0, numeric=0.7) == 0.7
    assert margin_of(None, table="small", unrated=9.0, numeric=0.0) == 0.0
    assert margin_of(None, table="none", unrated=9.0, numeric=0.7) == 0.0


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown rating 'great'; known: significantly, better, slightly, negligibly"):
        margin_of("great", table="small", unrated=0.0)
    with pytest.raises(ValueError, match="unknown margin table 'big'; known: none, small, large"):
        margin_of(None, table="big", unrated=0.0)


def test_the_table_cannot_be_changed_by_accident():
    with pytest.raises(TypeError):
        MARGINS["small"]["better"] = 0.5  # type: ignore[index]


def test_loss_at_gap_zero_is_softplus_of_the_margin():
    # recipe check S4: log(1 + e^m) for m = 0, 1/3, 2/3, 1, 2, 3, to the four digits printed there
    margin = torch.tensor([0.0, 1 / 3, 2 / 3, 1.0, 2.0, 3.0])
    expected = torch.tensor([0.6931, 0.8736, 1.0810, 1.3133, 2.1269, 3.0486])
    same = torch.full_like(margin, 1.7)
    torch.testing.assert_close(ranking_loss(same, same, margin), expected, atol=5e-5, rtol=0)


def test_a_negligible_rating_gives_equation_1():
    # gap 1.5: -log sigmoid(1.5) = log(1 + e^-1.5) = 0.2014133
    margin = torch.tensor([margin_of("negligibly", table=table, unrated=9.0) for table in MARGINS])
    loss = ranking_loss(torch.full((3,), 2.0), torch.full((3,), 0.5), margin)
    torch.testing.assert_close(loss, torch.full((3,), 0.2014133))


def test_a_margin_asks_for_a_wider_gap():
    # gap 1.5, margin 1: log(1 + e^-0.5) = 0.4740770
    loss = ranking_loss(torch.tensor([2.0]), torch.tensor([0.5]), torch.tensor([1.0]))
    torch.testing.assert_close(loss, torch.tensor([0.4740770]))


def test_the_gradient_lifts_the_chosen_and_lowers_the_rejected():
    # at gap 0 and margin 0 the pull is sigmoid(0) = 1/2 either way
    chosen, rejected = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    ranking_loss(chosen, rejected, torch.zeros(1)).sum().backward()
    torch.testing.assert_close(chosen.grad, torch.tensor([-0.5]))
    torch.testing.assert_close(rejected.grad, torch.tensor([0.5]))


def test_absurd_gaps_stay_finite():
    # softplus(m - gap): 1003 for a pair wrong by 1000, and nothing for one right by 1000
    scores = torch.tensor([-500.0, 500.0])
    torch.testing.assert_close(ranking_loss(scores, -scores, torch.full((2,), 3.0)), torch.tensor([1003.0, 0.0]))
