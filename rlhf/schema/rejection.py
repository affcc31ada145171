"""Settings: rejection sampling."""

from __future__ import annotations

from typing import Literal

from rlhf.schema.setting import Positive, Rate, Share, ours, paper
from rlhf.schema.shared import Combine, FineTune, Gate, Source


class RejectionConfig(FineTune, Combine, Gate):
    """Rejection-sampling fine-tuning (3.2.3)."""

    data: tuple[Source, ...] = ours((), "prompts", "no honest default")
    prompts: Positive = ours(10_000, "prompts a round")
    samples_per_prompt: Positive = ours(20, "K answers a prompt", "Fig 26 samples 20; the paper gives no K")
    temperatures: tuple[Rate, ...] = ours(
        (1.0, 1.2), "tried every round; it samples at the lowest that is as good as the best", "Fig 8", min_length=1
    )
    temperature_prompts: Positive = ours(200, "held-out prompts of that trial")
    max_new_tokens: Positive = ours(512, "longest answer in tokens")
    max_truncated: Share = ours(0.5, "stop if more than this share of the samples never ends", "they are no targets")
    pool_from: str | None = ours(
        None,
        "folder of a run whose samples are fine-tuned on instead: distillation",
        "the paper's smaller models (3.2.3)",
    )
    pool: Literal["all", "last"] = paper("all", "3.2.3", "top samples of all rounds, or of the last one only (V3)")
    start: Literal["base", "policy"] = paper("base", "3.2.3", "'always starting from the base model'")
    sft_share: Share = ours(
        0.1, "share of the training rows drawn from the demonstrations", "keeps their breadth", lt=1
    )
