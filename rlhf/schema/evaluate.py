"""Settings: evaluation."""

from __future__ import annotations

from rlhf.schema.setting import Positive, Rate, ours, paper
from rlhf.schema.shared import Combine, Source


class EvaluateConfig(Combine):
    """What is measured on every policy, always on held-out prompts (3.4, 4)."""

    data: tuple[Source, ...] = ours((), "prompts", "no honest default")
    prompts: int = ours(400, "prompts: a quarter each ordinary, instructed, borderline, unsafe", ge=4)
    temperature: Rate = ours(1.0, "of the measured answers", "what was trained")
    max_new_tokens: Positive = ours(512, "longest answer in tokens")
    best_of_prompts: int = ours(64, "prompts of the max-of-N curves, half borderline (Fig 7, Fig 8)", ge=2)
    best_of_samples: Positive = ours(16, "N of those curves")
    temperatures: tuple[Rate, ...] = ours((0.6, 1.0, 1.4), "of the temperature curves (Fig 8)", min_length=1)
    dialogues: Positive = ours(48, "conversations of the multi-turn test (Table 30)")
    turns: tuple[Positive, ...] = paper(
        (2, 4, 6, 20), "A.3.5", "user turns at which the instruction is checked", min_length=1
    )
    samples: Positive = ours(12, "prompts shown in the report across all policies")
