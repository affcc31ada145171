"""The table of reliability.md: a cell that was measured anew takes the place of the old one, all others stay."""

from __future__ import annotations

from pathlib import Path

FILE = Path(__file__).with_name("reliability.md")
COLUMNS = ("what", "tries", "failures", "seconds to recover", "plain HF Trainer")
BEGIN, END = "<!-- table -->\n", "<!-- /table -->"


def record(what: str, **cells: str) -> None:
    """Put the cells of a row, each by the first word of its column, into the table, and print them."""
    print(what, cells, flush=True)
    before, rest = FILE.read_text(encoding="utf-8").split(BEGIN)
    table, after = rest.split(END)
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()[2:]]
    known = {row[0]: row for row in rows}
    row = known.setdefault(what, [what, *[""] * (len(COLUMNS) - 1)])
    for i, column in enumerate(COLUMNS):
        row[i] = cells.get(column.split()[0], row[i])
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(row)} |" for row in known.values()]
    FILE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after, encoding="utf-8")
