"""The losses of PPO: four tokens by hand, when the clip bites, and microbatches that add up."""

import math

import pytest
import torch

from rlhf.functional.ppo import explained_variance, policy_loss, value_loss

# four tokens and one of padding, which shouts
RATIO = torch.tensor([[1.5, 0.5, 2.0, 0.75, 100.0]])
ADVANTAGES = torch.tensor([[1.0, 1.0, -1.0, -2.0, 100.0]])
MASK = torch.tensor([[True, True, True, True, False]])
OLD = torch.tensor([[-1.0, -2.0, -3.0, -0.5, -1.0]])


def test_four_tokens_by_hand():
    loss, stats = policy_loss(OLD + RATIO.log(), OLD, ADVANTAGES, MASK, clip_range=0.2)
    # good and 1.5: stopped at 1.2.  good and 0.5: not stopped, 0.5.  bad and 2: not stopped, -2.
    # bad and 0.75: stopped at 0.8, -1.6.  -(1.2 + 0.5 - 2 - 1.6) / 4 = 0.475
    torch.testing.assert_close(loss, torch.tensor(0.475))
    torch.testing.assert_close(stats.clip_fraction, torch.tensor(0.5))
    torch.testing.assert_close(stats.ratio_mean, torch.tensor(4.75 / 4))
    torch.testing.assert_close(stats.ratio_max, torch.tensor(2.0))
    # mean of (rho - 1) - log rho = 0.75 / 4 - log(1.5 * 0.5 * 2 * 0.75) / 4 = 0.1875 - 0.1177830 / 4
    torch.testing.assert_close(stats.approx_kl, torch.tensor(0.1580542))


def test_only_tokens_the_clip_has_not_stopped_learn():
    logprobs = (OLD + RATIO.log()).requires_grad_()
    loss, _ = policy_loss(logprobs, OLD, ADVANTAGES, MASK, clip_range=0.2)
    loss.backward()
    # d/d logprob of -rho A / 4 is itself: -0.5 / 4 and 2 / 4
    torch.testing.assert_close(logprobs.grad, torch.tensor([[0.0, -0.125, 0.5, 0.0, 0.0]]))


def test_the_first_step_is_plain_policy_gradient():
    # recipe check S9: the ratio is 1 before anything was learned; the gradient is -A / n
    logprobs = OLD.clone().requires_grad_()
    loss, stats = policy_loss(logprobs, OLD, ADVANTAGES, MASK, clip_range=0.2)
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(0.25))
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-0.25, -0.25, 0.25, 0.5, 0.0]]))
    assert [float(x) for x in stats] == [0.0, 1.0, 1.0, 0.0]


def test_a_ratio_below_one_everywhere_is_not_hidden_by_padding():
    _, stats = policy_loss(OLD + math.log(0.5), OLD, ADVANTAGES, MASK, clip_range=0.2)
    torch.testing.assert_close(stats.ratio_max, torch.tensor(0.5))


def test_old_policy_and_advantages_are_constants():
    old, advantages = OLD.clone().requires_grad_(), ADVANTAGES.clone().requires_grad_()
    loss, stats = policy_loss(OLD.clone().requires_grad_(), old, advantages, MASK, clip_range=0.2)
    loss.backward()
    assert old.grad is None
    assert advantages.grad is None
    assert not any(x.requires_grad for x in stats)


def test_padding_may_hold_anything():
    junk = torch.tensor([[0.0, 0.0, 0.0, 0.0, torch.nan]])
    logprobs = (OLD + junk).requires_grad_()
    loss, stats = policy_loss(logprobs, OLD + junk, ADVANTAGES + junk, MASK, clip_range=0.2)
    values = torch.zeros(1, 5, requires_grad=True)
    critic_loss = value_loss(values, junk, junk, MASK, value_clip_range=0.2)
    (loss + critic_loss).backward()
    assert all(x.isfinite() for x in (loss, critic_loss, *stats))
    assert logprobs.grad.isfinite().all()
    assert values.grad.isfinite().all()


def test_microbatches_sum_to_the_minibatch():
    generator = torch.Generator().manual_seed(0)
    logprobs, old, advantages, values, old_values, returns = torch.randn(6, 4, 5, generator=generator)
    # rows of 5, 1, 3 and 2 tokens: the mean of the microbatches' means would be something else
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 2])[:, None]
    whole, whole_stats = policy_loss(logprobs, old, advantages, mask, clip_range=0.2)
    critic = value_loss(values, old_values, returns, mask, value_clip_range=0.2)
    policy_parts, critic_parts = [], []
    for rows in (slice(0, 1), slice(1, 4)):
        inputs = (x[rows] for x in (logprobs, old, advantages, mask))
        policy_parts.append(policy_loss(*inputs, clip_range=0.2, denominator=mask.sum()))
        inputs = (x[rows] for x in (values, old_values, returns, mask))
        critic_parts.append(value_loss(*inputs, value_clip_range=0.2, denominator=11.0))
    torch.testing.assert_close(sum(loss for loss, _ in policy_parts), whole)
    torch.testing.assert_close(sum(critic_parts), critic)
    for name in ("clip_fraction", "ratio_mean", "approx_kl"):
        torch.testing.assert_close(sum(getattr(s, name) for _, s in policy_parts), getattr(whole_stats, name))
    assert max(s.ratio_max for _, s in policy_parts) == whole_stats.ratio_max


def test_a_microbatch_of_padding_adds_nothing():
    nobody = torch.zeros_like(MASK)
    loss, stats = policy_loss(OLD, OLD, ADVANTAGES, nobody, clip_range=0.2, denominator=7)
    assert [float(loss), *map(float, stats)] == [0.0] * 5


@pytest.mark.parametrize("clip_range", [0.0, 1.0, -0.2, 20.0])
def test_a_useless_clip_is_refused(clip_range):
    with pytest.raises(ValueError, match="clip_range"):
        policy_loss(OLD, OLD, ADVANTAGES, MASK, clip_range=clip_range)
    if clip_range <= 0:
        with pytest.raises(ValueError, match="value_clip_range"):
            value_loss(OLD, OLD, OLD, MASK, value_clip_range=clip_range)


def test_a_mean_over_nothing_is_refused():
    nobody = torch.zeros_like(MASK)
    with pytest.raises(ValueError, match="no completion token"):
        policy_loss(OLD, OLD, ADVANTAGES, nobody, clip_range=0.2)
    with pytest.raises(ValueError, match="no completion token"):
        value_loss(OLD, OLD, OLD, nobody, value_clip_range=0.2)
    with pytest.raises(ValueError, match="no completion token"):
        explained_variance(OLD, OLD, nobody)
    for denominator in (0, torch.tensor(-1)):
        with pytest.raises(ValueError, match="denominator must be positive"):
            policy_loss(OLD, OLD, ADVANTAGES, MASK, clip_range=0.2, denominator=denominator)


def test_value_loss_by_hand():
    old_values = torch.tensor([[0.0, 0.0, 0.0, 1.0, 7.0]])
    values = torch.tensor([[1.0, 1.0, 0.1, 0.0, 7.0]])
    returns = torch.tensor([[2.0, -1.0, 0.5, 0.0, 99.0]])
    loss = value_loss(values, old_values, returns, MASK, value_clip_range=0.2)
    # jumped by 1 towards 2, credited 0.2: max(1, 1.8^2) = 3.24.  jumped away from -1: max(4, 1.2^2) = 4.
    # moved 0.1, inside the clip: 0.16.  arrived at 0 from 1, credited 0.8: max(0, 0.64) = 0.64.
    # 1/2 (3.24 + 4 + 0.16 + 0.64) / 4 = 1.005
    torch.testing.assert_close(loss, torch.tensor(1.005))


def test_only_the_critic_learns_from_its_loss():
    values, old_values, returns = (torch.full((1, 1), x, requires_grad=True) for x in (0.1, 0.0, 0.5))
    loss = value_loss(values, old_values, returns, torch.tensor([[True]]), value_clip_range=torch.inf)
    loss.backward()
    # d/dV of (V - G)^2 / 2 = V - G
    torch.testing.assert_close(values.grad, torch.tensor([[-0.4]]))
    assert old_values.grad is None
    assert returns.grad is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0], 1.0),
        ([6.0, 7.0, 8.0], 1.0),  # a constant too high, which a variance does not see
        ([4.0, 4.0, 4.0], 0.0),
        ([-1.0, -2.0, -3.0], -3.0),  # misses by 2G: 1 - 4
        ([1.0, 2.0, 2.0], 2 / 3),  # misses {0, 0, 1} with variance 2/9, of 2/3
    ],
)
def test_explained_variance_by_hand(values, expected):
    mask = torch.tensor([[True, True, True, False]])
    explained = explained_variance(torch.tensor([[*values, 99.0]]), torch.tensor([[1.0, 2.0, 3.0, -99.0]]), mask)
    torch.testing.assert_close(explained, torch.tensor(expected))


def test_constant_returns_leave_nothing_to_explain():
    constant = torch.full((1, 37), 0.1)
    everywhere = torch.ones_like(constant, dtype=torch.bool)
    assert explained_variance(torch.zeros_like(constant), constant, everywhere) == 0.0
