"""What is wrong with data, gathered over a whole pass: the first of it in full, all of it by number."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rlhf.data.lines import Fault

SHOWN = 50


@dataclass(slots=True)
class Problems:
    """Faults that would stop a stage, and notes about what would be left out or could not be looked at."""

    first: list[Fault] = field(default_factory=list)
    by_what: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def add(self, fault: Fault, *, kind: str = "") -> None:
        """One more; in full as long as there is room. The offending value is no part of its kind."""
        self.by_what[kind or fault.what.partition(" (got ")[0]] += 1
        if len(self.first) < SHOWN:
            self.first.append(fault)

    def __len__(self) -> int:
        return self.by_what.total()
