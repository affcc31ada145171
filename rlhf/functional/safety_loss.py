"""The auxiliary loss that gives the safety score an absolute meaning (paper 3.2.2, A.3.3, Table 29)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy


def safety_loss(
    chosen_score: Float[Tensor, " B"],
    rejected_score: Float[Tensor, " B"],
    chosen_safe: Bool[Tensor, " B"] | Float[Tensor, " B"],
    rejected_safe: Bool[Tensor, " B"] | Float[Tensor, " B"],
    labelled: Bool[Tensor, " B"],
) -> Float[Tensor, " B"]:
    """Put safe completions above a probability of 0.5 and unsafe ones below it, whatever they are paired with.

        L = 1/2 [ BCE(sigmoid(r_c), safe_c) + BCE(sigmoid(r_r), safe_r) ]   where the pair carries safety labels
            0                                                               elsewhere

    The ranking loss only sees the gap of a pair, so that a pair of two unsafe completions teaches it nothing
    about the threshold; this loss sees each completion by itself. Ours: the paper names a "customized loss"
    that discriminates between safe and unsafe generations and measures it at 0.5, but prints no formula and
    no weight. The weight is the caller's.

    Args:
        chosen_score: [B] r(x, y_c), in logits.
        rejected_score: [B] r(x, y_r), in logits.
        chosen_safe: [B] True (or 1.0) where the chosen completion was labelled safe; not read where
            `labelled` is False, so it may be NaN there.
        rejected_safe: [B] the same for the rejected completion.
        labelled: [B] True where the pair carries safety labels.

    Returns:
        [B] the loss of each pair, in nats, before weighting.
    """
    # A label that is NaN because there is none would, if read, turn a gradient of 0 into NaN.
    chosen_label = chosen_safe.to(chosen_score.dtype).masked_fill(~labelled, 0.0)
    rejected_label = rejected_safe.to(rejected_score.dtype).masked_fill(~labelled, 0.0)
    chosen = cross_entropy(chosen_score, chosen_label, reduction="none")
    rejected = cross_entropy(rejected_score, rejected_label, reduction="none")
    return torch.where(labelled, 0.5 * (chosen + rejected), 0.0)
