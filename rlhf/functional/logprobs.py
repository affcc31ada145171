"""What a model thinks of the tokens that were chosen, without a second copy of its [B, T, V] output."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def chosen_logprobs(
    logits: Float[Tensor, "B T V"], tokens: Int[Tensor, "B T"], *, temperature: float
) -> Float[Tensor, "B T"]:
    """The log-probability of each chosen token, under the distribution it was sampled from.

        log pi(y_t) = z[y_t] - logsumexp(z),   z = logits / temperature

    Subtracting the normaliser from one number, and not from all V, keeps no [B, T, V] log-softmax for the backward
    pass; at temperature 1, in single precision, nothing of that size is kept beside the logits. Ours: the paper does
    not say at which temperature PPO samples; whatever it is, policy, old policy and reference must share it.

    Args:
        logits: [B, T, V]; position t predicts tokens[:, t], so the caller has shifted already.
        tokens: [B, T] indices into V; any valid index where a token does not count.
        temperature: > 0, that of sampling.

    Returns:
        [B, T] in nats, never positive; in single precision also for logits in half precision.

    Raises:
        ValueError: if the temperature is not positive (greedy decoding has no distribution).
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        scaled = scaled / temperature
    chosen = scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - scaled.logsumexp(-1)


def entropy(logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
    """How undecided the model is at each position: 0 when certain, log V when it could be anything.

        H_t = -sum_v pi(v) log pi(v)

    Args:
        logits: [B, T, V], already divided by the temperature; -inf for a token that cannot occur.

    Returns:
        [B, T] in nats.
    """
    log_probability = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    # 0 log 0 = 0; floating point says NaN.
    return -(log_probability.exp() * log_probability.masked_fill(log_probability == -torch.inf, 0.0)).sum(-1)
