"""Does the ledger show that every sample was trained on as often as planned? Torch-free.

`ledger.jsonl` opens each part of a step with its samples and the draws of an epoch: draw d is sample d modulo their
number, and epoch e takes the draws from e * draws on. One line follows for every optimizer step that was made.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Part:
    """One part of a step as its ledger tells it."""

    name: str
    ids: Sequence[Any]
    draws: int
    epochs: int
    steps: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def epochs_made(self) -> int:
        """Epochs that were begun."""
        return len({step["epoch"] for step in self.steps})

    def faults(self) -> Iterator[str]:
        """Every way in which what was trained on is not what was planned; none is the proof."""
        numbers = [step["step"] for step in self.steps]
        if numbers != list(range(1, len(numbers) + 1)):
            first = next(i for i, number in enumerate(numbers, start=1) if number != i)
            yield f"step {first} is missing or doubled"
        for epoch in range(max([self.epochs, *(step["epoch"] + 1 for step in self.steps)])):
            drawn = [row for step in self.steps if step["epoch"] == epoch for row in step["rows"]]
            taken = Counter(row % len(self.ids) for row in drawn)
            if not taken and self.may_stop_early and epoch >= self.epochs_made:
                continue
            planned = Counter((epoch * self.draws + i) % len(self.ids) for i in range(self.draws))
            if epoch >= self.epochs:
                planned = Counter()
            for sample in sorted({*taken, *planned}):
                if taken[sample] != planned[sample]:
                    name = f"sample {self.ids[sample] if self.ids[sample] else sample}"
                    yield f"epoch {epoch + 1}: {name} {taken[sample]} times, planned {planned[sample]}"

    @property
    def may_stop_early(self) -> bool:
        """Whether epochs draw on instead of starting over: then they are iterations, and may end before the last."""
        return self.draws != len(self.ids)


def read(ledger: Path) -> list[Part]:
    """The parts of a ledger, in order."""
    parts: dict[str, Part] = {}
    with ledger.open(encoding="utf-8") as lines:  # by newlines alone: an id may hold what else ends a line in Unicode
        for row in map(json.loads, lines):
            if "ids" in row:
                parts[row["part"]] = Part(row["part"], row["ids"], row["draws"], row["epochs"])
            else:
                parts[row["part"]].steps.append(row)
    return list(parts.values())
