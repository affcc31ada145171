"""What a reward model has to beat: rules that read no language, trained on the same pairs and tested on the same.

A model is worth its cost only where it knows more than the length of an answer and the words in it. Both rules see the
answers alone, never the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.data.types import Preference

MOST_PAIRS = 20_000  # to train on: seconds, and more words do not help a bag of them


def length_rule(train: Sequence[Preference], test: Sequence[Preference]) -> tuple[str, Tensor]:
    """`longer wins` or `shorter wins`, whichever is right more often in training, and the gap it gives every test pair.

    Returns:
        The rule, and [N] the lengths' difference, chosen minus rejected, with the rule's sign: above 0 it is right.
    """
    sign = -1.0 if float(_longer(train).sign().sum()) < 0 else 1.0
    return ("longer wins" if sign > 0 else "shorter wins"), sign * _longer(test)


def bag_of_words(train: Sequence[Preference], test: Sequence[Preference]) -> Tensor:
    """Logistic regression on what two answers differ in: TF-IDF of words and word pairs, and length. [N] gaps."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    train = train[:MOST_PAIRS]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, token_pattern=r"\b\w+\b")
    try:
        words.fit([text for pair in train for text in (pair.chosen, pair.rejected)])
    except ValueError:  # no word occurs twice: there is nothing to learn from
        return torch.zeros(len(test))
    scale = _longer(train).std().clamp(min=1.0)  # TF-IDF weights are normalised, which takes the length away
    learned, asked = (
        hstack(
            [
                words.transform([pair.chosen for pair in side]) - words.transform([pair.rejected for pair in side]),
                csr_matrix((_longer(side) / scale)[:, None].numpy()),
            ]
        ).tocsr()
        for side in (train, test)
    )
    # Every second pair the other way round, so that there are two classes; without an intercept no side is preferred.
    sides = [1 if i % 2 else -1 for i in range(len(train))]
    model = LogisticRegression(fit_intercept=False, solver="liblinear", random_state=0)
    model.fit(learned.multiply([[side] for side in sides]).tocsr(), sides)
    return torch.tensor(model.decision_function(asked), dtype=torch.float64)


def _longer(pairs: Sequence[Preference]) -> Tensor:
    return torch.tensor([float(len(pair.chosen) - len(pair.rejected)) for pair in pairs], dtype=torch.float64)
