"""Which side of the split a prompt is on: a property of its text alone (3.2.1: test prompts are never trained on).

Two sets that share a prompt, two stages that read one set, and two runs with other seeds therefore agree, whatever else
the sets hold: no prompt is learned from here and tested there. The price is a share that is met on average only.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Literal

from rlhf.data.types import Dialogue, Preference, Prompt, Turn

Side = Literal["train", "validation", "test"]
VALIDATION_SHARE = 0.1  # of the prompts that are not tested


def prompt_of(row: Prompt | Preference | Dialogue) -> Sequence[Turn]:
    """The turns that a completion answers."""
    match row:
        case Prompt():
            return row.turns
        case Preference():
            return row.prompt
        case Dialogue():
            return row.turns[:-1]


def prompt_digest(turns: Sequence[Turn]) -> int:
    """64 bits of the prompt's text, alike for texts that differ in letter case, blanks or Unicode form only."""
    return digest("\n".join(f"{turn.role}: {normal(turn.content)}" for turn in turns))


def normal(text: str) -> str:
    """The text without what nobody would call a difference."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def digest(text: str) -> int:
    """64 bits of a text: among a million, two different ones are taken for one with a chance of 3 in 100 million."""
    data = text.encode("utf-8", errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def side_of(prompt: int, *, test_share: float) -> Side:
    """The side of a prompt by its digest; what is tested at one share is tested at every larger one."""
    place = prompt / 2**64
    if place < test_share:
        return "test"
    return "validation" if place < test_share + (1 - test_share) * VALIDATION_SHARE else "train"
