"""Plain text for the terminal: columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlhf.reporting.text import plain


def table(rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their longest cell, two spaces apart, the last one ragged."""
    lines = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)][:-1]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)]
        print("  ".join(cells).rstrip())
