"""One policy answering one conversation, token by token, as the engine samples it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.chat import decode_completion, encode_prompt
from rlhf.data.types import Turn
from rlhf.errors import DataError
from rlhf.generation.protocol import Sampling
from rlhf.generation.transformers import choose
from rlhf.models.load import freeze, load_policy, load_tokenizer, positions
from rlhf.schema import ModelConfig


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer so far; `finish_reason` is None while it is being written."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finish_reason: Literal["stop", "length"] | None = None


@dataclass(frozen=True, slots=True)
class Voice:
    """A policy one can talk to."""

    name: str
    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, name: str, artefact: Path, config: ModelConfig) -> Voice:
        checkpoint = artefact / "checkpoint"
        return cls(name, freeze(load_policy(checkpoint, config)), load_tokenizer(checkpoint))

    @torch.no_grad()
    def answer(self, turns: Sequence[Turn], sampling: Sampling, *, seed: int) -> Iterator[Answer]:
        """The answer to `turns`, one token longer each time; the last one has its `finish_reason`.

        Raises:
            DataError: if the conversation leaves no room for an answer, or a turn spells a control token.
        """
        prompt = encode_prompt(self.tokenizer, turns)
        limit = positions(self.policy.config)
        room = min(sampling.max_new_tokens, limit - len(prompt))
        if room < 1:
            what = f"the conversation has {len(prompt)} tokens, and {self.name} reads {limit}"
            raise DataError(what, hints=["begin a new one: n"])
        draws = torch.rand(room, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        cache, fed = DynamicCache(), torch.tensor([prompt], device=self.policy.device)
        ids: list[int] = []
        for uniform in draws:
            logits = self.policy(input_ids=fed, past_key_values=cache, logits_to_keep=1).logits[:, -1]
            token, _ = choose(
                logits, uniform[None].to(logits.device), temperature=sampling.temperature, top_p=sampling.top_p
            )
            ids.append(int(token))
            fed = token[:, None]
            stopped = ids[-1] == self.tokenizer.eos_token_id
            reason: Literal["stop", "length"] | None = "stop" if stopped else "length" if len(ids) == room else None
            yield Answer(tuple(prompt), tuple(ids), decode_completion(self.tokenizer, ids), reason)
            if stopped:
                return
