"""The price of leaving the reference, and the reward of each token (paper 3.2.3, equation 4)."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def kl_estimate(
    logprobs: Float[Tensor, "B T"],
    reference_logprobs: Float[Tensor, "B T"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    estimator: Estimator,
) -> Float[Tensor, "B T"]:
    """Estimate, from the sampled tokens alone, how far the policy is from the reference.

        l = log pi(y_t) - log pi_0(y_t),   y_t drawn from pi
        k1 = l                      unbiased; negative for many single tokens
        k2 = l^2 / 2                biased by the third order of l; never negative
        k3 = exp(-l) - 1 + l        unbiased; never negative; less noisy than k1 while the two are close

    Equation 4 subtracts KL(pi || pi_0) of the completion and does not say how it is measured. Ours: the sum of k1
    over the tokens is an unbiased estimate of it, and what a penalty in the reward needs; k3 is the one to plot.

    Args:
        logprobs: [B, T] log pi(y_t | y_<t), in nats.
        reference_logprobs: [B, T] log pi_0(y_t | y_<t), in nats.
        completion_mask: [B, T] True on tokens of the completion; nothing is read elsewhere.
        estimator: `k1`, `k2` or `k3`.

    Returns:
        [B, T] in nats; 0 outside the completion.

    Raises:
        ValueError: if the estimator is not one of the three.
    """
    log_ratio = torch.where(completion_mask, logprobs - reference_logprobs, 0.0)
    match estimator:
        case "k1":
            return log_ratio
        case "k2":
            return 0.5 * log_ratio.square()
        case "k3":
            return torch.expm1(-log_ratio) + log_ratio
        case _:
            raise ValueError(f"unknown estimator {estimator!r}; known: k1, k2, k3")


def exact_kl(
    logits: Float[Tensor, "B T V"],
    reference_logits: Float[Tensor, "B T V"],
    completion_mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """How far the policy is from the reference at each token, over the whole vocabulary: no sampling noise.

        KL_t = sum_v pi(v | y_<t) (log pi(v | y_<t) - log pi_0(v | y_<t))

    Args:
        logits: [B, T, V] of the policy; -inf (a token that cannot occur) adds nothing.
        reference_logits: [B, T, V] of the reference; -inf where the policy may go makes the result inf, as it is.
        completion_mask: [B, T] True on tokens of the completion.

    Returns:
        [B, T] in nats; 0 outside the completion.
    """
    log_policy, log_reference = logits.log_softmax(-1), reference_logits.log_softmax(-1)
    # 0 log 0 = 0, whatever the reference says; floating point says NaN.
    gap = (log_policy - log_reference).masked_fill(log_policy == -torch.inf, 0.0)
    return torch.where(completion_mask, (log_policy.exp() * gap).sum(-1), 0.0)


def last_token(completion_mask: Bool[Tensor, "B T"]) -> Int[Tensor, " B"]:
    """The place of the last completion token of each row, where a score of the whole completion belongs.

    Args:
        completion_mask: [B, T] True on tokens of the completion.

    Returns:
        [B] indices into T.

    Raises:
        ValueError: if a row has no completion token.
    """
    empty = ~completion_mask.any(dim=1)
    if bool(empty.any()):
        raise ValueError(f"rows without a completion token: {empty.nonzero().flatten().tolist()}")
    places = torch.arange(completion_mask.shape[1], device=completion_mask.device)
    return (places * completion_mask).amax(dim=1)


def token_rewards(
    score: Float[Tensor, " B"],
    kl: Float[Tensor, "B T"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    kl_coef: float,
) -> Float[Tensor, "B T"]:
    """Spread equation 4 over the tokens: each pays for its own divergence, the last one earns the score.

        r_t = -beta kl_t + [t is the last completion token] Rtilde_c(g|p)

    The rewards of a row sum to R(g|p) = Rtilde_c(g|p) - beta KL. Where in the completion each part falls is ours.

    Args:
        score: [B] Rtilde_c(g|p), the whitened score.
        kl: [B, T] from `kl_estimate` or `exact_kl`, in nats; not read outside the completion.
        completion_mask: [B, T] True on tokens of the completion, the end-of-sequence token included.
        kl_coef: the paper's beta: 0.01 for 7B and 13B, 0.005 for 34B and 70B.

    Returns:
        [B, T] rewards, in the unit of the score; 0 outside the completion.

    Raises:
        ValueError: if a row has no completion token, or `kl_coef` is negative (a reward for leaving the reference).
    """
    if not kl_coef >= 0.0:
        raise ValueError(f"kl_coef must not be negative, got {kl_coef!r}")
    penalty = torch.where(completion_mask, -kl_coef * kl, 0.0)
    return penalty.scatter_add(1, last_token(completion_mask).unsqueeze(1), score.to(penalty.dtype).unsqueeze(1))
