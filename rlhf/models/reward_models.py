"""The two reward models of an artefact, and the one score they make together (3.2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.chat import template_digest
from rlhf.data.types import DOMAINS
from rlhf.errors import DataError
from rlhf.functional.piecewise import piecewise_score
from rlhf.models.load import checkpoint_of, freeze, load_reward_model, load_tokenizer
from rlhf.models.score import score
from rlhf.models.shared import shared
from rlhf.schema import ModelConfig


@dataclass(frozen=True, slots=True)
class Scores:
    """Raw scores of N completions, in logits: one per model, and the piecewise combination of eq. 4."""

    helpfulness: Tensor
    safety: Tensor
    combined: Tensor


@dataclass(frozen=True, slots=True)
class RewardModels:
    """Helpfulness and safety model, frozen, and shared by processes where the engine cuts models."""

    helpfulness: PreTrainedModel
    safety: PreTrainedModel
    pad_token_id: int
    eos_token_id: int

    @classmethod
    def load(cls, artefact: Path, config: ModelConfig, *, reads: PreTrainedTokenizerBase) -> RewardModels:
        """The models of an artefact, to score what the tokenizer `reads` writes.

        Raises:
            DataError: if they were trained on other ids or another template: the scores would be of another text.
        """
        checkpoint = checkpoint_of(artefact)
        for domain in DOMAINS:
            check_same_tokens(reads, load_tokenizer(checkpoint / domain), where=checkpoint / domain)
        helpfulness = shared(freeze(load_reward_model(checkpoint / "helpfulness", config)))
        safety = shared(freeze(load_reward_model(checkpoint / "safety", config)))
        tokenizer = load_tokenizer(checkpoint / "helpfulness")
        return cls(helpfulness, safety, tokenizer.pad_token_id, tokenizer.eos_token_id)

    def __call__(self, rows: Sequence[Sequence[int]], is_safety: Sequence[bool], *, safety_threshold: float) -> Scores:
        """Score dialogues as ids; the safety model decides on safety prompts and below the threshold.

        Reward models have only ever read a score at the EOS, so an answer that was cut is given one.
        """
        rows = [row if row[-1] == self.eos_token_id else (*row, self.eos_token_id) for row in rows]
        helpfulness, safety = (
            score(model, rows, pad_token_id=self.pad_token_id, what=f"a score of the {name} model")
            for name, model in (("helpfulness", self.helpfulness), ("safety", self.safety))
        )
        tagged = torch.tensor(list(is_safety), dtype=torch.bool)
        combined = piecewise_score(helpfulness, safety, tagged, safety_threshold=safety_threshold)
        return Scores(helpfulness, safety, combined)


def check_same_tokens(policy: PreTrainedTokenizerBase, rewards: PreTrainedTokenizerBase, *, where: Path) -> None:
    """DataError unless both write a dialogue with the same template and the same ids."""
    written, trained = template_digest(policy), template_digest(rewards)
    if written != trained:
        what = f"the policy's chat template has digest {written[:12]}, the reward model was trained with {trained[:12]}"
    elif different := policy.get_vocab().items() ^ rewards.get_vocab().items():
        token = min(token for token, _ in different)
        ours, theirs = (tokenizer.get_vocab().get(token, "unknown") for tokenizer in (policy, rewards))
        what = f"token {token!r} is {ours} to the policy, and {theirs} where the reward model was trained"
    else:
        return
    hints = ["train reward models from this policy: rlhf run stage=reward", "or start from the policy they belong to"]
    raise DataError(what, where=str(where), hints=hints)
