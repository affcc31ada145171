"""Settings: pretraining from scratch."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from rlhf.schema.setting import Count, Positive, Rate, Share, ours, paper
from rlhf.schema.shared import AdamW, Source


class BaseConfig(AdamW):
    """Pretraining from scratch (2.2); without effect when model.path names a checkpoint."""

    data: tuple[Source, ...] = ours((), "running text", "no honest default")
    words: Positive = ours(525_000, "words of text the micro-world writes", "what its facts need")
    steps: Positive = ours(1200, "optimizer steps at `row_length`", "enough for the micro-world's facts")
    row_length: Positive = ours(128, "tokens per row", "short rows learn facts first, long ones then extend")
    batch_size: Positive = ours(8, "rows per step", "1,024 tokens a step")
    extension_steps: Count = ours(80, "steps at `extension_length` after that", "so that long dialogues are known")
    extension_length: Positive = ours(512, "tokens per row then", "twenty turns of the micro-world")
    extension_batch_size: Positive = ours(3, "rows per step then", "about as many tokens a step")
    learning_rate: Rate = paper(3e-4, "2.2", "peak learning rate (7B and 13B)")
    warmup_steps: Count = paper(2000, "2.2", "steps that warm up")
    final_lr_ratio: Share = paper(0.1, "2.2", "cosine ends at this share of the learning rate")

    @model_validator(mode="after")
    def _extension_microbatches(self) -> Self:
        rows, part = self.extension_batch_size, self.microbatch_size
        if self.extension_steps and part and rows % part:
            raise ValueError(f"extension_batch_size ({rows}) must be a multiple of microbatch_size ({part})")
        return self
