"""The auxiliary safety loss: the three bins of pairs by hand, and silence where there is no label."""

import torch

from rlhf.functional.safety_loss import safety_loss

YES, NO = torch.tensor([True]), torch.tensor([False])


def test_the_three_bins_by_hand():
    # chosen score 2, rejected score -1; -log sigmoid(x) = softplus(-x):
    # softplus(-2) = 0.1269280, softplus(-1) = 0.3132617, softplus(1) = 1.3132617, softplus(2) = 2.1269280
    chosen, rejected = torch.full((3,), 2.0), torch.full((3,), -1.0)
    loss = safety_loss(
        chosen,
        rejected,
        torch.tensor([True, True, False]),
        torch.tensor([False, True, False]),
        torch.tensor([True, True, True]),
    )
    expected = [
        (0.1269280 + 0.3132617) / 2,  # preferred safe, other unsafe: both on their side
        (0.1269280 + 1.3132617) / 2,  # both safe: the rejected one is pulled up
        (2.1269280 + 0.3132617) / 2,  # both unsafe: the chosen one is pulled down, which ranking never does
    ]
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_a_score_of_zero_knows_nothing():
    # sigmoid(0) = 1/2, so log 2 = 0.6931472 whatever the labels
    torch.testing.assert_close(safety_loss(torch.zeros(1), torch.zeros(1), YES, NO, YES), torch.tensor([0.6931472]))


def test_each_score_is_pulled_to_its_own_label():
    # d BCE / d score = sigmoid(score) - label = +-1/2 at score 0, and half of that for each of the two
    chosen, rejected = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    safety_loss(chosen, rejected, YES, NO, YES).sum().backward()
    torch.testing.assert_close(chosen.grad, torch.tensor([-0.25]))
    torch.testing.assert_close(rejected.grad, torch.tensor([0.25]))


def test_without_labels_there_is_no_loss_and_no_gradient():
    chosen, rejected = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    nobody_said = torch.tensor([torch.nan, torch.nan])
    loss = safety_loss(chosen, rejected, nobody_said, nobody_said, torch.tensor([False, False]))
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0]
    assert chosen.grad.tolist() == rejected.grad.tolist() == [0.0, 0.0]


def test_labels_may_be_numbers():
    numbers = safety_loss(torch.ones(1), torch.ones(1), torch.tensor([1.0]), torch.tensor([0.0]), YES)
    torch.testing.assert_close(numbers, safety_loss(torch.ones(1), torch.ones(1), YES, NO, YES))


def test_saturated_scores_stay_finite():
    # a safe completion scored -200: -log sigmoid(-200) = 200, halved
    loss = safety_loss(torch.tensor([-200.0]), torch.tensor([-200.0]), YES, NO, YES)
    torch.testing.assert_close(loss, torch.tensor([100.0]))
