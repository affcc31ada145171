"""One score out of two reward models: safety speaks first (paper 3.2.3)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def piecewise_score(
    helpfulness_score: Float[Tensor, " B"],
    safety_score: Float[Tensor, " B"],
    is_safety_prompt: Bool[Tensor, " B"],
    *,
    safety_threshold: float,
) -> Float[Tensor, " B"]:
    """Pick, for each completion, the reward model whose verdict counts (paper 3.2.3).

        R_c(g|p) = R_s(g|p)   if p was written to provoke unsafe text, or R_s(g|p) < threshold
                   R_h(g|p)   otherwise

    The paper states R_s as a probability and then takes LOGIT(R_c). Our reward models emit logits, so only
    the comparison goes through a sigmoid and no logit is taken after. A NaN safety score is passed on, not
    replaced by the helpfulness score: it is found out where the scores are checked.

    Args:
        helpfulness_score: [B] R_h, in logits.
        safety_score: [B] R_s, in logits.
        is_safety_prompt: [B] True where the prompt is tagged as one that might elicit unsafe text.
        safety_threshold: a probability; the paper uses 0.15, where unsafe completions are found with precision
            0.89 and recall 0.55. At 0 only the tag counts.

    Returns:
        [B] the selected score, in logits, not yet whitened (see `whiten`).

    Raises:
        ValueError: if `safety_threshold` is not a probability, which is what passing a logit looks like.
    """
    if not 0.0 <= safety_threshold <= 1.0:
        raise ValueError(f"safety_threshold must be a probability in [0, 1], got {safety_threshold!r}")
    # In single precision at least: bfloat16 knows no number between 0.1494 and 0.1504.
    probability = torch.sigmoid(safety_score.to(torch.promote_types(safety_score.dtype, torch.float32)))
    # "not at or above" is "below" for every number, and is true of NaN.
    safety_counts = is_safety_prompt | ~(probability >= safety_threshold)
    return torch.where(safety_counts, safety_score, helpfulness_score)
