"""Settings: evaluation."""

from __future__ import annotations

from rlhf.schema.setting import Count, Positive, Rate, Section, ours, paper
from rlhf.schema.shared import Combine, RulesAt, Source


class At(Section):
    """Something that may be given from elsewhere."""

    path: str | None = ours(None, "a folder or file; none: what the run has, or nothing", "the run's own is the rule")


class PolicyAt(At):
    """A policy to measure: one of the run by its name, or a checkpoint anywhere."""

    name: str = ours(..., "its name in the report", "no honest default")


class EvaluateConfig(Combine):
    """What is measured on every policy, always on held-out prompts (3.4, 4)."""

    data: tuple[Source, ...] = ours((), "prompts", "no honest default")
    policies: tuple[PolicyAt, ...] = ours((), "policies to measure, by name or path; none: all of the run")
    rewards: At = At()
    judge: At = At()
    checks: At = At()
    instructions: RulesAt = RulesAt()
    opponent: str | None = ours(None, "policy of the win rates (Fig 11)", "the first that was fine-tuned")
    prompts: int = ours(400, "prompts: a quarter each ordinary, instructed, borderline, unsafe", ge=4)
    temperature: Rate = ours(1.0, "of the measured answers", "what was trained")
    max_new_tokens: Positive = ours(512, "longest answer in tokens")
    best_of_prompts: int = ours(64, "prompts of the max-of-N curves, half borderline (Fig 7, Fig 8)", ge=2)
    best_of_samples: Positive = ours(16, "N of those curves")
    temperatures: tuple[Rate, ...] = ours((0.6, 1.0, 1.4), "of the temperature curves (Fig 8)", min_length=1)
    dialogues: Positive = ours(64, "conversations of the multi-turn test (Table 30)", "60 without a miss: above .95")
    turns: tuple[Positive, ...] = paper(
        (2, 4, 6, 20), "A.3.5", "user turns at which the instruction is checked", min_length=1
    )
    changes: Count = ours(0, "conversations whose instruction is changed or withdrawn half way", "beyond the paper")
    unseen: tuple[str, ...] = ours((), "instructions of a further multi-turn test: what gatt.unseen left out (Fig 28)")
    attention: Count = ours(8, "conversations in which attention to the instruction is read (Fig 10)")
    diversity_prompts: Count = paper(10, "5.1", "factual prompts, and as many creative ones (Fig 21)")
    diversity_samples: int = paper(25, "5.1", "answers to each of them at every temperature", ge=2)
    diversity_temperatures: tuple[Rate, ...] = ours(
        (0.1, 0.5, 1.0, 1.5), "temperatures of those answers", "four of the paper's 0.1 to 1.5", min_length=2
    )
    across_rounds: bool = ours(True, "whether reward models of all rounds are held against the newest pairs (3.2.1)")
    samples: Positive = ours(12, "prompts shown in the report across all policies")
