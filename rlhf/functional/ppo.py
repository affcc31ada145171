"""The clipped losses of PPO: a policy that moves a little at a time, and a critic that follows (paper 3.2.3).

Means run over the completion tokens, each token counting the same; that this is the normalisation is ours. A mini-batch
that is worked through in microbatches, or on several devices, gives every call the token count of the whole mini-batch
as `denominator`: the losses then sum to the mean over the mini-batch, however it was cut.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class PolicyStats(NamedTuple):
    """What `policy_loss` saw, in scalars free of gradients.

    All but `ratio_max` are sums over the loss's denominator, so microbatches add up; of `ratio_max` take the largest.
    """

    clip_fraction: Float[Tensor, ""]  # share of tokens that the clip has stopped, in [0, 1]
    ratio_mean: Float[Tensor, ""]  # pi / pi_old over the tokens; 1 before the first step
    ratio_max: Float[Tensor, ""]  # the largest pi / pi_old of a token; 0 without tokens
    approx_kl: Float[Tensor, ""]  # KL(pi_old || pi), the k3 estimate, in nats a token


def policy_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    clip_range: float,
    denominator: Tensor | float | None = None,
) -> tuple[Float[Tensor, ""], PolicyStats]:
    """Make good tokens likelier and bad ones less so, but not further than the clip in one go (paper 3.2.3).

        rho_t = pi(y_t) / pi_old(y_t)
        L_t   = -min( rho_t A_t, clip(rho_t, 1 - c, 1 + c) A_t )
        L     = sum_t L_t / denominator

    The minimum only stops a ratio on the side where the advantage pushes it: one that strayed to the wrong side
    is always brought back.

    Args:
        logprobs: [B, T] log pi(y_t | y_<t) of the policy being trained, in nats.
        old_logprobs: [B, T] the same of the policy that sampled, in nats; a constant.
        advantages: [B, T] from `gae`, usually whitened; constants.
        completion_mask: [B, T] True on tokens of the completion; nothing is read elsewhere.
        clip_range: c, in (0, 1); the paper uses 0.2.
        denominator: what the sum is divided by; None for the tokens of this very batch.

    Returns:
        The loss, a scalar in the unit of the advantages, and `PolicyStats`.

    Raises:
        ValueError: if `clip_range` is not in (0, 1), the denominator is not positive, or no token is left to average.
    """
    if not 0.0 < clip_range < 1.0:
        raise ValueError(f"clip_range must be in (0, 1), got {clip_range!r}")
    tokens = _denominator(completion_mask, denominator)
    advantages = torch.where(completion_mask, advantages.detach(), 0.0)
    log_ratio = torch.where(completion_mask, logprobs - old_logprobs.detach(), 0.0)
    ratio = log_ratio.exp()
    objective = ratio * advantages
    clipped_objective = ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages
    loss = -torch.minimum(objective, clipped_objective).sum() / tokens

    with torch.no_grad():
        stats = PolicyStats(
            clip_fraction=(clipped_objective < objective).sum() / tokens,
            ratio_mean=ratio.masked_fill(~completion_mask, 0.0).sum() / tokens,
            ratio_max=ratio.masked_fill(~completion_mask, 0.0).amax(),
            approx_kl=(torch.expm1(log_ratio) - log_ratio).sum() / tokens,
        )
    return loss, stats


def value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    value_clip_range: float,
    denominator: Tensor | float | None = None,
) -> Float[Tensor, ""]:
    """Bring the critic to the returns, without credit for a jump of more than the clip.

        V_clip = V_old + clip(V - V_old, -c, c)
        L_t    = 1/2 max( (V - G)^2, (V_clip - G)^2 )
        L      = sum_t L_t / denominator

    Ours: the paper does not describe the critic.

    Args:
        values: [B, T] the critic's estimates, in the unit of the rewards.
        old_values: [B, T] its estimates when the rollout was made; constants.
        returns: [B, T] G from `gae`; constants.
        completion_mask: [B, T] True on tokens of the completion; nothing is read elsewhere.
        value_clip_range: c > 0, in the unit of the rewards; infinity for no clip.
        denominator: what the sum is divided by; None for the tokens of this very batch.

    Returns:
        The loss, a scalar in the squared unit of the rewards, before weighting by `value_coef`.

    Raises:
        ValueError: if `value_clip_range` or the denominator is not positive, or there are no tokens to average.
    """
    if not value_clip_range > 0.0:
        raise ValueError(f"value_clip_range must be positive, got {value_clip_range!r}")
    tokens = _denominator(completion_mask, denominator)
    old_values, returns = old_values.detach(), returns.detach()
    clipped_values = old_values + (values - old_values).clamp(-value_clip_range, value_clip_range)
    error = torch.where(completion_mask, values - returns, 0.0).square()
    clipped_error = torch.where(completion_mask, clipped_values - returns, 0.0).square()
    return 0.5 * torch.maximum(error, clipped_error).sum() / tokens


def explained_variance(
    values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    completion_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, ""]:
    """How much of the ups and downs of the returns the critic foresaw.

        1 - var(G - V) / var(G)

    1 is a perfect critic (up to a constant), 0 one that knows nothing, negative one that misleads. Constant returns
    leave nothing to explain: 0.

    Args:
        values: [B, T] the critic's estimates.
        returns: [B, T] G from `gae`.
        completion_mask: [B, T] True on tokens of the completion.

    Returns:
        A scalar without unit, at most 1, free of gradients.

    Raises:
        ValueError: if there is no completion token.
    """
    # In double precision equal returns have variance 0 exactly.
    actual = returns.detach()[completion_mask].double()
    if actual.numel() == 0:
        raise ValueError("no completion token to average over")
    missed = (actual - values.detach()[completion_mask].double()).var(correction=0)
    variance = actual.var(correction=0)
    explained = torch.where(variance > 0.0, 1.0 - missed / variance, 0.0)
    return explained.to(returns.dtype)


def _denominator(completion_mask: Bool[Tensor, "B T"], denominator: Tensor | float | None) -> Tensor | float:
    if denominator is None:
        denominator = completion_mask.sum()
        if denominator == 0:
            raise ValueError("no completion token to average over")
    elif not denominator > 0:
        raise ValueError(f"denominator must be positive, got {float(denominator)!r}")
    return denominator
