"""What is asked of a generation engine, and what it answers. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from rlhf.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. `temperature` 0 is greedy, of which there is one answer a prompt.

    Raises:
        ConfigError: if this is no way to sample.
    """

    samples_per_prompt: int
    temperature: float
    max_new_tokens: int
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.samples_per_prompt < 1:
            raise ConfigError(f"at least one sample a prompt is needed, got {self.samples_per_prompt}")
        if self.max_new_tokens < 1:
            raise ConfigError(f"an answer needs room for one token at least, got max_new_tokens {self.max_new_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"a temperature must be a number from 0 on, got {self.temperature}")
        if self.temperature == 0 and self.samples_per_prompt > 1:
            raise ConfigError(
                f"at temperature 0 all {self.samples_per_prompt} samples of a prompt would be the same",
                hints=["sample at a temperature above 0", "or ask for one answer a prompt"],
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")


@dataclass(frozen=True, slots=True)
class Request:
    """K completions of every prompt, please.

    Attributes:
        prompts: token ids, of any lengths.
        keys: one name per prompt; with `seed` and k it fixes the random numbers of a sample.
        sampling: how.
        eos_token_id: the token that ends an answer.
    """

    prompts: Sequence[Sequence[int]]
    keys: Sequence[str]
    sampling: Sampling
    seed: int
    eos_token_id: int

    def part(self, index: Sequence[int]) -> Request:
        """The same of these prompts only."""
        return replace(self, prompts=[self.prompts[i] for i in index], keys=[self.keys[i] for i in index])


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


class Engine(Protocol):
    """Something that samples: a model in this process, or a server."""

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""

    @property
    def decoder(self) -> str:
        """What computes the steps of decoding, for the record: fused, forward (the model's own) or vllm."""

    def generate(self, request: Request) -> list[list[Completion]]:
        """K completions of every prompt, in the order given."""
