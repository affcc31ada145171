"""What a model thinks of the tokens that were chosen, without a second copy of its [B, T, V] output."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint


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
    _check_temperature(temperature)
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        scaled = scaled / temperature
    chosen = scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - scaled.logsumexp(-1)


def chosen_logprobs_from_hidden(
    hidden: Float[Tensor, "B T H"],
    head_weight: Float[Tensor, "V H"],
    tokens: Int[Tensor, "B T"],
    *,
    temperature: float,
    chunk: int,
) -> Float[Tensor, "B T"]:
    """`chosen_logprobs` of the logits `hidden @ head_weight.T`, which never exist in one piece.

    Chunks of positions go through the head one after the other; the backward pass computes each chunk's logits again
    instead of keeping them. Peak memory beyond the inputs is O(chunk * V) instead of O(B * T * V), for one more
    multiplication by the head. The values are those of the direct way up to rounding.

    Args:
        hidden: [B, T, H] the last hidden states, after the final norm.
        head_weight: [V, H] the output embedding; the head has no bias, as in Llama.
        tokens: [B, T] indices into V.
        temperature: > 0, that of sampling.
        chunk: positions (of the B * T) at a time.

    Returns:
        [B, T] in nats.

    Raises:
        ValueError: if the temperature or the chunk is not positive.
    """
    _check_temperature(temperature)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 position, got {chunk!r}")

    def one_chunk(states: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        return chosen_logprobs(states @ weight.T, chosen, temperature=temperature)

    # One row of all B * T positions, so that chunks need not respect the borders of rows.
    states, chosen = hidden.flatten(0, 1).unsqueeze(0), tokens.flatten().unsqueeze(0)
    pieces = [
        # Nothing random happens in a chunk, so there is no random state to put back.
        checkpoint(one_chunk, some_states, head_weight, some_chosen, use_reentrant=False, preserve_rng_state=False)
        for some_states, some_chosen in zip(
            torch.split(states, chunk, dim=1), torch.split(chosen, chunk, dim=1), strict=True
        )
    ]
    return torch.cat(pieces, dim=1).view_as(tokens)


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


def _check_temperature(temperature: float) -> None:
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature!r}")
