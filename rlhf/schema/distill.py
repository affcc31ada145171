"""Settings: safety context distillation."""

from __future__ import annotations

from typing import Literal

from rlhf.schema.setting import Positive, Rate, Share, ours, paper
from rlhf.schema.shared import Combine, FineTune, Gate, Source


class DistillConfig(FineTune, Combine, Gate):
    """Safety context distillation (4.2.4)."""

    data: tuple[Source, ...] = ours(
        (), "prompts: those with the safety tag are distilled on, others replayed", "no honest default"
    )
    prompts: Positive = ours(2000, "prompts to distil on, at most")
    asked: Literal["adversarial", "all"] = paper(
        "adversarial", "4.2.4", "which prompts; on helpful ones it hurts and raises false refusals (Table 40)"
    )
    preprompt: Literal["generic", "category"] = paper(
        "category", "4.2.4", "generic ones, or answer templates where the prompt's kind has one"
    )
    keep: Literal["better", "all"] = paper(
        "better", "4.2.4", "distilled answers the safety model scores strictly higher, or all"
    )
    temperature: Rate = ours(1.0, "of both answers", "what was trained")
    max_new_tokens: Positive = ours(512, "longest answer in tokens")
    replay_share: Share = ours(
        0.5,
        "share of the rows that are the policy's own answers to ordinary prompts, without the safety tag",
        "keeps what it knew",
        lt=1,
    )
    replay_samples: Positive = ours(4, "answers sampled to each of those, the best by reward is kept", "as in gatt")
