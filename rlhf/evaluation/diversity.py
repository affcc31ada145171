"""How alike several answers to one prompt are, and how that changes with the temperature (Fig 21)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.types import Prompt
from rlhf.evaluation.intervals import of_mean
from rlhf.generation.protocol import Engine, Sampling
from rlhf.rollout import sample


def self_bleu(groups: Sequence[Sequence[str]]) -> float:
    """Mean BLEU (0 to 100) of each answer against the other answers to its prompt: 100 where all are the same."""
    values = [value for group in groups for value in _likeness(group)]
    return sum(values) / len(values)


def over_temperature(
    policy: PreTrainedModel | Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[str, Sequence[Prompt]],
    temperatures: Sequence[float],
    *,
    samples: int,
    max_new_tokens: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """{kind of prompt: {temperature: Self-BLEU, its interval over prompts}}, and the slope of the line through them.

    The paper's claim is about slopes: after RLHF a factual prompt gets the same answer at any temperature, a creative
    one does not.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind, asked in prompts.items():
        found[kind] = {}
        for t in temperatures:
            groups = sample(policy, tokenizer, asked, Sampling(samples, t, max_new_tokens), seed=seed)
            alike = [self_bleu([[s.text for s in group]]) for group in groups]
            found[kind][f"{t:g}"] = {"self_bleu": sum(alike) / len(alike), "interval": of_mean(alike)}
        found[kind]["slope"] = slope(temperatures, [found[kind][f"{t:g}"]["self_bleu"] for t in temperatures])
    return found


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line; 0 for a single point."""
    middle, level = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - middle) ** 2 for a in x)
    return sum((a - middle) * (b - level) for a, b in zip(x, y, strict=True)) / spread if spread else 0.0


def _likeness(group: Sequence[str]) -> list[float]:
    """BLEU of each answer against the others."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(effective_order=True)
    values: list[float] = []
    for i, text in enumerate(group):
        others = [other for j, other in enumerate(group) if j != i]
        # Silence is as like silence as can be; BLEU, without a word to count, would call it diverse.
        values.append(100.0 if text in others else bleu.sentence_score(text, others).score)
    return values
