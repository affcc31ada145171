"""What is asked of a generation engine, and what it answers. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `temperature` 0 is greedy."""

    samples_per_prompt: int
    temperature: float
    max_new_tokens: int
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer.

    Attributes:
        token_ids: T tokens, the EOS included where the answer ended.
        logprobs: T log-probabilities (nats) under the distribution sampled from, temperature included.
        finish_reason: "stop" at the EOS, "length" where max_new_tokens cut it.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
