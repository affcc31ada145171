"""GAE: one sequence by hand, both ends of lambda, and indifference to padding."""

import pytest
import torch

from rlhf.functional.gae import gae

ONES = torch.ones(1, 3, dtype=torch.bool)
REWARDS = torch.tensor([[0.0, 0.0, 1.0]])
VALUES = torch.tensor([[0.5, 0.5, 0.5]])


def random_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)


def test_three_tokens_by_hand():
    advantages, returns = gae(REWARDS, VALUES, ONES, gamma=0.5, gae_lambda=0.5)
    # delta = [0 + 0.25 - 0.5, 0 + 0.25 - 0.5, 1 - 0.5] = [-0.25, -0.25, 0.5], and each A adds a quarter of the next
    torch.testing.assert_close(advantages, torch.tensor([[-0.28125, -0.125, 0.5]]))
    torch.testing.assert_close(returns, torch.tensor([[0.21875, 0.375, 1.0]]))


def test_gamma_and_lambda_are_not_interchangeable():
    # delta as above, and each A adds 0.5 * 0.25 = an eighth of the next
    advantages, _ = gae(REWARDS, VALUES, ONES, gamma=0.5, gae_lambda=0.25)
    torch.testing.assert_close(advantages, torch.tensor([[-0.2734375, -0.1875, 0.5]]))


def test_lambda_zero_is_the_one_step_error():
    rewards, values = random_batch()
    mask = torch.ones_like(rewards, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask, gamma=0.9, gae_lambda=0.0)
    targets = rewards.clone()
    targets[:, :-1] += 0.9 * values[:, 1:]
    torch.testing.assert_close(returns, targets)
    torch.testing.assert_close(advantages, targets - values)


def test_lambda_one_is_monte_carlo_return_minus_value():
    rewards, values = random_batch()
    mask = torch.ones_like(rewards, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask, gamma=0.9, gae_lambda=1.0)
    # G_t = sum of gamma^(s - t) r_s over s >= t: a triangle of powers
    steps = torch.arange(6)
    powers = torch.tensor(0.9) ** (steps[:, None] - steps)
    monte_carlo = rewards @ powers.tril()
    torch.testing.assert_close(returns, monte_carlo)
    torch.testing.assert_close(advantages, monte_carlo - values)


def test_padding_changes_nothing():
    rewards, values = random_batch()
    short, long = torch.ones(4, 6, dtype=torch.bool), torch.zeros(4, 9, dtype=torch.bool)
    long[:, :6] = True
    padded_rewards, padded_values = torch.full((4, 9), torch.nan), torch.full((4, 9), 99.0)
    padded_rewards[:, :6], padded_values[:, :6] = rewards, values
    for plain, padded in zip(
        gae(rewards, values, short, gamma=0.9, gae_lambda=0.8),
        gae(padded_rewards, padded_values, long, gamma=0.9, gae_lambda=0.8),
        strict=True,
    ):
        torch.testing.assert_close(padded[:, :6], plain)
        assert padded[:, 6:].eq(0).all()


def test_nothing_is_expected_after_the_last_token():
    # one token worth 1, critic said 0.5, padding is valued 100: A = 1 - 0.5
    mask = torch.tensor([[True, False]])
    advantages, returns = gae(
        torch.tensor([[1.0, 100.0]]), torch.tensor([[0.5, 100.0]]), mask, gamma=1.0, gae_lambda=1.0
    )
    assert advantages.tolist() == [[0.5, 0.0]]
    assert returns.tolist() == [[1.0, 0.0]]


def test_targets_carry_no_gradient():
    values = VALUES.clone().requires_grad_()
    advantages, returns = gae(REWARDS, values, ONES, gamma=1.0, gae_lambda=0.95)
    assert not advantages.requires_grad
    assert not returns.requires_grad


@pytest.mark.parametrize("mask", [[[False, True, True]], [[True, False, True]]])
def test_left_padding_and_holes_are_refused(mask):
    with pytest.raises(ValueError, match="padding on the right"):
        gae(REWARDS, VALUES, torch.tensor(mask), gamma=1.0, gae_lambda=1.0)


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.1, 0.5), (-0.1, 0.5), (0.5, 1.1), (0.5, -0.1)])
def test_discounts_outside_zero_to_one_are_refused(gamma, gae_lambda):
    with pytest.raises(ValueError, match="must be in"):
        gae(REWARDS, VALUES, ONES, gamma=gamma, gae_lambda=gae_lambda)
