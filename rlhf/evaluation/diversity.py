"""How alike several answers to one prompt are (Fig 21)."""

from __future__ import annotations

from collections.abc import Sequence


def self_bleu(groups: Sequence[Sequence[str]]) -> float:
    """Mean BLEU (0 to 100) of each answer against the other answers to its prompt: 100 where all are the same."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(effective_order=True)
    values: list[float] = []
    for group in groups:
        for i, text in enumerate(group):
            others = [other for j, other in enumerate(group) if j != i]
            # Silence is as like silence as can be; BLEU, without a word to count, would call it diverse.
            values.append(100.0 if text in others else bleu.sentence_score(text, others).score)
    return sum(values) / len(values)
