"""What changed from one text to the next, word by word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Literal

Kind = Literal["same", "gone", "new"]


def word_changes(before: str, after: str) -> list[tuple[Kind, str]]:
    """The words of both texts in one line of reading: kept, taken away, put in. Blanks follow their word."""
    a, b = _words(before), _words(after)
    return list(_merged(a, b))


def _merged(a: list[str], b: list[str]) -> Iterator[tuple[Kind, str]]:
    for tag, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            yield "same", "".join(a[i:j])
            continue
        if i < j:
            yield "gone", "".join(a[i:j])
        if k < m:
            yield "new", "".join(b[k:m])


def _words(text: str) -> list[str]:
    return re.findall(r"\S+\s*|\s+", text)
