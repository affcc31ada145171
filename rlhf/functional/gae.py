"""Generalised advantage estimation: how much better than expected each token turned out."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Credit each token with what followed it, short-sightedly (lambda = 0) or to the end (lambda = 1).

        delta_t = r_t + gamma V_{t+1} - V_t
        A_t     = delta_t + gamma lambda A_{t+1}
        G_t     = A_t + V_t

    V_{t+1} and A_{t+1} are 0 after the last completion token: a completion ends there, whether it stopped by itself
    or was cut, and nothing is bootstrapped from padding. Ours: the paper names neither estimator, gamma nor lambda.

    Args:
        rewards: [B, T] from `token_rewards`; not read outside the completion.
        values: [B, T] the critic's estimate before each token, in the unit of the rewards; not read outside.
        completion_mask: [B, T] True on the tokens of the completion: a run that starts at the first column.
        gamma: discount per token, in [0, 1]; 1 weighs the score at the end fully for every token.
        gae_lambda: in [0, 1]; 0 is the one-step error (low variance, biased by the critic), 1 is return minus value.

    Returns:
        [B, T] advantages and [B, T] returns, the critic's targets, in the unit of the rewards; both 0 outside the
        completion and free of gradients.

    Raises:
        ValueError: if gamma or lambda is not in [0, 1], or the mask has a hole or does not start at the first column.
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must be in [0, 1], got {gamma!r}")
    if not 0.0 <= gae_lambda <= 1.0:
        raise ValueError(f"gae_lambda must be in [0, 1], got {gae_lambda!r}")
    if bool((completion_mask[:, 1:] & ~completion_mask[:, :-1]).any()):
        raise ValueError("completion_mask must be True from the first column on, without holes: padding on the right")

    # With zeros in the padding the recursion, run from the right, arrives at the last token with nothing to carry.
    rewards = torch.where(completion_mask, rewards.detach(), 0.0)
    values = torch.where(completion_mask, values.detach(), 0.0)
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = delta + gamma * gae_lambda * next_advantage
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values
