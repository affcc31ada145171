"""What is kept of every pair that was read: digests, its place and its side; enough to find repeats and leaks."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from rlhf.data.repeats import HINT, WHAT, Repeats
from rlhf.data.split import Side, prompt_digest, side_of
from rlhf.data.types import Preference
from rlhf.schema import Source

PARTS = 1000  # places are kept as line x PARTS + number within the line
LEAK = "its prompt is tested"
SIDES: tuple[Side, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong between two pairs: what, which pair is to blame, its place, the other's, and the fix."""

    what: str
    pair: int
    where: str
    other: int
    other_where: str
    hint: str
    both: bool
    """Whether neither of the two can be trusted."""

    @property
    def pairs(self) -> tuple[int, ...]:
        """Those to leave out."""
        return (self.other, self.pair) if self.both else (self.pair,)

    def __str__(self) -> str:
        return f"{self.what} ({self.other_where})"


class Ledger:
    """Pairs numbered from 0 in the order they were read: 49 bytes each."""

    def __init__(self, test_share: float) -> None:
        self.test_share = test_share
        self.repeats = Repeats()
        self.sides = array("B")
        self._files: dict[str, int] = {}
        self._file_of = array("I")
        self._places = array("Q")

    def add(self, pair: Preference, where: str, source: Source) -> None:
        """Note a pair of a source."""
        prompt = prompt_digest(pair.prompt)
        self.repeats.add(pair, prompt)
        side = side_used(source, prompt, test_share=self.test_share)
        self.sides.append(SIDES.index(side))
        file, _, place = where.rpartition(":")
        line, _, part = place.partition(".")
        self._file_of.append(self._files.setdefault(file, len(self._files)))
        self._places.append(int(line) * PARTS + min(int(part or 0), PARTS - 1))

    def __len__(self) -> int:
        return len(self.sides)

    def where(self, number: int) -> str:
        """``file:line`` of a pair."""
        line, part = divmod(self._places[number], PARTS)
        file = list(self._files)[self._file_of[number]]
        return f"{file}:{line}" + (f".{part}" if part else "")

    def findings(self) -> Iterator[Finding]:
        """Repeats, contradictions and ids given twice; then pairs to train on whose prompt is tested."""
        for kind, first, later in sorted(self.repeats.found(), key=lambda found: found[2]):
            where, other = self.where(later), self.where(first)
            yield Finding(WHAT[kind], later, where, first, other, HINT[kind], both=kind == "swapped")
        import numpy as np

        prompts, sides = np.frombuffer(self.repeats.prompts, dtype=np.uint64), np.frombuffer(self.sides, dtype=np.uint8)
        tested = np.flatnonzero(sides == SIDES.index("test"))
        leaking = np.flatnonzero((sides != SIDES.index("test")) & np.isin(prompts, prompts[tested]))
        tested_at = {int(prompts[row]): int(row) for row in tested[::-1]} if len(leaking) else {}
        for row in leaking.tolist():
            test = tested_at[int(prompts[row])]
            hint = "leave it out of what is trained on, or give neither source a `use`: prompts then keep their side"
            yield Finding(LEAK, row, self.where(row), test, self.where(test), hint, both=False)

    def tested(self) -> set[int]:
        """Digests of the prompts that are tested."""
        test = SIDES.index("test")
        return {prompt for prompt, side in zip(self.repeats.prompts, self.sides, strict=True) if side == test}


def side_used(source: Source, prompt: int, *, test_share: float) -> Side:
    """The side of a prompt: its own, unless all of the source is to be trained on or tested with."""
    if source.use == "test":
        return "test"
    side = side_of(prompt, test_share=test_share)
    return "train" if source.use == "train" and side == "test" else side
