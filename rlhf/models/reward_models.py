"""The two reward models of an artefact, and the one score they make together (3.2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.functional.piecewise import piecewise_score
from rlhf.models.load import freeze, load_reward_model, load_tokenizer
from rlhf.models.score import score
from rlhf.schema import ModelConfig


@dataclass(frozen=True, slots=True)
class Scores:
    """Raw scores of N completions, in logits: one per model, and the piecewise combination of eq. 4."""

    helpfulness: Tensor
    safety: Tensor
    combined: Tensor


@dataclass(frozen=True, slots=True)
class RewardModels:
    """Helpfulness and safety model, frozen."""

    helpfulness: PreTrainedModel
    safety: PreTrainedModel
    pad_token_id: int
    eos_token_id: int

    @classmethod
    def load(cls, artefact: Path, config: ModelConfig) -> RewardModels:
        checkpoint = artefact / "checkpoint"
        helpfulness = freeze(load_reward_model(checkpoint / "helpfulness", config))
        safety = freeze(load_reward_model(checkpoint / "safety", config))
        tokenizer = load_tokenizer(checkpoint / "helpfulness")
        return cls(helpfulness, safety, tokenizer.pad_token_id, tokenizer.eos_token_id)

    def __call__(self, rows: Sequence[Sequence[int]], is_safety: Sequence[bool], *, safety_threshold: float) -> Scores:
        """Score dialogues as ids; the safety model decides on safety prompts and below the threshold.

        Reward models have only ever read a score at the EOS, so an answer that was cut is given one.
        """
        rows = [row if row[-1] == self.eos_token_id else (*row, self.eos_token_id) for row in rows]
        helpfulness = score(self.helpfulness, rows, pad_token_id=self.pad_token_id)
        safety = score(self.safety, rows, pad_token_id=self.pad_token_id)
        tagged = torch.tensor(list(is_safety), dtype=torch.bool)
        combined = piecewise_score(helpfulness, safety, tagged, safety_threshold=safety_threshold)
        return Scores(helpfulness, safety, combined)
