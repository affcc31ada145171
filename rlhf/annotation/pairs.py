"""Pairs of answers that nobody has rated yet, and a rating of one of them as a preference (3.2.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rlhf.data.types import Preference, Prompt, Rating, Turn, turns_from_json, turns_to_json


@dataclass(frozen=True, slots=True)
class Candidate:
    """Two answers in the order in which they are shown; the order is drawn, so that no variant is always first."""

    id: str
    domain: str
    side: str
    prompt: tuple[Turn, ...]
    first: str
    second: str
    kind: str = ""

    @classmethod
    def of(cls, prompt: Prompt, a: str, b: str, *, domain: str, side: str, seed: int) -> Candidate:
        """A pair of answers to a prompt, swapped or not by a hash of seed and texts."""
        name = hashlib.sha256("\n".join((str(seed), domain, side, prompt.id, a, b)).encode()).hexdigest()
        first, second = (b, a) if int(name[-1], 16) % 2 else (a, b)
        return cls(name[:16], domain, side, prompt.turns, first, second, prompt.kind)

    def rated(
        self, choice: int, rating: Rating, safe: tuple[bool | None, bool | None], *, source: str
    ) -> Preference | None:
        """The preference for the answer of number ``choice`` (1, 2); None if it is unsafe and the other is not."""
        texts, labels = (self.first, self.second), safe
        if choice == 2:
            texts, labels = texts[::-1], labels[::-1]
        if labels == (False, True):
            return None
        return Preference(
            self.id, self.prompt, *texts, source, rating, *labels, is_safety=self.domain == "safety", kind=self.kind
        )

    def to_json(self) -> dict[str, Any]:
        row = {"id": self.id, "domain": self.domain, "side": self.side, "prompt": turns_to_json(self.prompt)}
        return {**row, "first": self.first, "second": self.second, "kind": self.kind}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        named = {name: str(row[name]) for name in ("id", "domain", "side", "first", "second", "kind")}
        return cls(prompt=turns_from_json(row["prompt"], "prompt"), **named)
