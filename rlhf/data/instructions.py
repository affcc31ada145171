"""What is asked for a whole dialogue: constraints from lists, combined at random, in a long and a short form (A.3.5).

    hobbies       "You enjoy tennis."                       "Hobbies: tennis."
    languages     "Speak in French."                        "Language: French."
    figures       "Always act as Napoleon from now."        "Figure: Napoleon."
    instructions  "Always answer with haiku."               as it is, or a short form of its own

The lists come from a file, or are written by the policy itself, which then asks for nobody it does not know.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.errors import DataError, did_you_mean

LONG = {"hobbies": "You enjoy {}.", "languages": "Speak in {}.", "figures": "Always act as {} from now."}
SHORT = {"hobbies": "Hobbies: {}.", "languages": "Language: {}.", "figures": "Figure: {}."}
KINDS = (*LONG, "instructions")
WITHDRAWAL = "From now on, ignore what I asked you to do in every answer."

# What the policy is asked for when it writes the lists itself.
QUESTIONS = {
    "hobbies": "List {n} hobbies, one a line, without explanations.",
    "languages": "List {n} languages that you speak well, one a line, without explanations.",
    "figures": "List {n} public figures whom you could act as, one a line, names only.",
}
LONGEST_ITEM = 5  # words: what is longer is an explanation, not an item
_BULLET = re.compile(r"^\s*(?:\d+\s*[.):]|[-*•])\s*")


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction, and its less verbose form."""

    text: str
    short: str


@dataclass(frozen=True, slots=True)
class Lists:
    """What constraints are drawn from, by kind; a kind without items is not drawn."""

    items: Mapping[str, Sequence[str]]
    short: Mapping[str, str] = field(default_factory=dict)
    """Free instructions that have a short form of their own."""

    def constraint(self, kind: str, item: str) -> Instruction:
        """One constraint of a kind."""
        if kind in LONG:
            return Instruction(LONG[kind].format(item), SHORT[kind].format(item))
        return Instruction(item, self.short.get(item, item))

    def draw(self, rng: random.Random) -> Instruction:
        """A random combination: some of the kinds, in any order, one item of each."""
        kinds = [kind for kind in KINDS if self.items.get(kind)]
        chosen = rng.sample(kinds, rng.randint(1, len(kinds)))
        parts = [self.constraint(kind, rng.choice(self.items[kind])) for kind in chosen]
        return Instruction(" ".join(part.text for part in parts), " ".join(part.short for part in parts))


def read_lists(path: Path) -> Lists:
    """Lists from a JSON file: {"hobbies": [..], "languages": [..], "figures": [..], "instructions": [..]}, any of them.

    A free instruction is a text, or {"text": .., "short": ..}.
    """
    try:
        given: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"not JSON: {error}", where=str(path)) from None
    if not isinstance(given, dict) or not given:
        raise DataError(f"lists of instructions must be a table with any of {', '.join(KINDS)}", where=str(path))
    items: dict[str, list[str]] = {}
    short: dict[str, str] = {}
    for kind, entries in given.items():
        if kind not in KINDS:
            hints = [did_you_mean(kind, KINDS), f"kinds are {', '.join(KINDS)}"]
            raise DataError(f"unknown kind {kind!r}", where=str(path), hints=[hint for hint in hints if hint])
        if not isinstance(entries, list) or not entries:
            raise DataError(f"{kind} must be a list that is not empty", where=str(path))
        items[kind] = []
        for entry in entries:
            text = entry.get("text") if isinstance(entry, dict) else entry
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"{kind} holds {entry!r}, which is no text", where=str(path))
            items[kind].append(text.strip())
            if isinstance(entry, dict) and isinstance(entry.get("short"), str):
                short[text.strip()] = entry["short"].strip()
    return Lists(items, short)


def parse_list(text: str) -> list[str]:
    """The items of a list as a model writes it: a line each, numbered or with bullets, or one line with commas."""
    lines = [line for line in text.splitlines() if line.strip()]
    parts = lines if len(lines) > 1 else text.split(",")
    items = [_BULLET.sub("", part).strip().rstrip(".;,").strip() for part in parts]
    return [item for item in items if item and item[-1] not in ":?!" and len(item.split()) <= LONGEST_ITEM]


def merged(answers: Sequence[str]) -> list[str]:
    """The items of several such answers, each once, letter case aside, in the order they first came."""
    found: dict[str, str] = {}
    for answer in answers:
        for item in parse_list(answer):
            found.setdefault(item.casefold(), item)
    return list(found.values())
