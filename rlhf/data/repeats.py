"""Pairs that stand twice, pairs that contradict each other, ids given twice: found by 64 bits a text."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from rlhf.data.split import digest
from rlhf.data.types import Preference

Kind = Literal["repeat", "swapped", "id"]
WHAT: dict[Kind, str] = {
    "repeat": "the same pair as an earlier row",
    "swapped": "an earlier row prefers the other answer of the same two",
    "id": "an earlier row has the same id",
}
HINT: dict[Kind, str] = {
    "repeat": "leave one of them out",
    "swapped": "decide which it is, or leave both out",
    "id": "give every row an id of its own, or leave the field out",
}


@dataclass(slots=True)
class Repeats:
    """32 bytes a pair; rows are numbered from 0 in the order they were added."""

    prompts: array[int] = field(default_factory=lambda: array("Q"))
    chosen: array[int] = field(default_factory=lambda: array("Q"))
    rejected: array[int] = field(default_factory=lambda: array("Q"))
    ids: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, pair: Preference, prompt: int) -> None:
        """Remember a pair; ``prompt`` is its prompt's digest."""
        self.prompts.append(prompt)
        self.chosen.append(digest(pair.chosen.strip()))
        self.rejected.append(digest(pair.rejected.strip()))
        self.ids.append(digest(f"{pair.source}\n{pair.id}"))

    def found(self) -> Iterator[tuple[Kind, int, int]]:
        """``(what, earlier row, later row)``: each later row once per earlier first one."""
        import numpy as np

        prompts, chosen, rejected, ids = (
            np.frombuffer(column, dtype=np.uint64) for column in (self.prompts, self.chosen, self.rejected, self.ids)
        )
        with np.errstate(over="ignore"):  # arithmetic of digests wraps round
            pairs = prompts * np.uint64(0x9E3779B97F4A7C15) + (chosen + rejected) * (chosen ^ rejected | np.uint64(1))
        for first, later in _groups(pairs):
            yield ("repeat" if chosen[first] == chosen[later] else "swapped"), first, later
        for first, later in _groups(ids):
            yield "id", first, later


def _groups(keys: object) -> Iterator[tuple[int, int]]:
    """``(first row, later row)`` of rows with equal keys."""
    import numpy as np

    values = np.asarray(keys)
    order = np.argsort(values, kind="stable")
    equal = values[order[1:]] == values[order[:-1]]
    first = 0
    for place in np.flatnonzero(equal).tolist():
        if not (place and equal[place - 1]):
            first = int(order[place])
        yield first, int(order[place + 1])
