"""Settings: reward models."""

from __future__ import annotations

from typing import Literal

from rlhf.schema.setting import Count, Positive, Rate, Share, ours, paper
from rlhf.schema.shared import AdamW, Combine, Source

Margin = Literal["none", "small", "large"]


class RewardConfig(AdamW, Combine):
    """Helpfulness and safety reward models (3.2.2)."""

    data: tuple[Source, ...] = ours((), "public preference sets, beside the pairs of earlier stages", "none")
    margin: Margin = ours("small", "margin by rating (Table 27)", "best average in Table 28")
    margin_ablation: tuple[Margin, ...] = ours(
        (),
        "margins to compare on the same held-out pairs, by a helpfulness model each (Table 28)",
        "none: it takes time",
    )
    unrated_margin: float | None = ours(
        None, "margin of pairs without a rating, in logits; 0 is equation 1", "none: such pairs are refused", ge=0
    )
    safety_loss_coef: float = ours(1.0, "weight of the safety auxiliary loss (Table 29)", ge=0)
    center_coef: float = ours(0.01, "weight of (r_chosen + r_rejected)^2: keeps scores around 0", ge=0)
    helpfulness_share: Rate = ours(0.5, "helpfulness model: share of helpfulness pairs", "our reading of 3.2.2", le=1)
    safety_share: Rate = paper(0.9, "3.2.2", "safety model: share of safety pairs, the rest helpfulness", le=1)
    epochs: Positive = paper(1, "3.2.2", "passes over the pairs; longer 'can lead to over-fitting'")
    learning_rate: Rate = paper(1e-5, "3.2.2", "maximum learning rate; the paper uses 5e-6 at 70B")
    final_lr_ratio: Share = paper(0.1, "3.2.2", "cosine ends at this share of the learning rate")
    warmup_ratio: Share = paper(0.03, "3.2.2", "share of the steps that warm up")
    warmup_min_steps: Count = paper(5, "3.2.2", "and at least this many")
    batch_size: Positive = paper(512, "3.2.2", "pairs per step, over all devices")

    @property
    def other_margins(self) -> tuple[Margin, ...]:
        """Those of `margin_ablation` that the helpfulness model itself does not have, once each."""
        return tuple(margin for margin in dict.fromkeys(self.margin_ablation) if margin != self.margin)
