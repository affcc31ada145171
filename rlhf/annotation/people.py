"""Pairs to a spreadsheet for people, and their ratings back, every cell checked.

What people see is blind: no model, no temperature, no side of the split, answers and rows in a drawn order. A cell
that a spreadsheet would take for a formula starts with an apostrophe. What was shown may not come back changed: sorting
one column alone would else give every rating to another pair.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rlhf.annotation.pairs import Candidate
from rlhf.data.lines import Fault, Line, json_rows
from rlhf.data.types import RATINGS, Preference, Rating
from rlhf.errors import DataError

SHOWN = ("pair", "question", "answer_1", "answer_2")
ASKED = ("choice", "degree", "safe_1", "safe_2", "remark")
COLUMNS = (*SHOWN, *ASKED)
FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
YES, NO = ("yes", "y", "true", "1"), ("no", "n", "false", "0")
SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}

Row = Mapping[str, str]


def export(path: Path, pairs: Sequence[Candidate]) -> None:
    """Write pairs for people to rate: ``.csv``, or ``.jsonl`` with the same columns."""
    rows = [dict(zip(SHOWN, shown(pair), strict=True)) | dict.fromkeys(ASKED, "") for pair in sorted(pairs, key=_order)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return
    if path.suffix != ".csv":
        raise DataError(f"can't tell how to write {path.name}", hints=["name it .csv or .jsonl"])
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    writer.writerows({name: guarded(value) for name, value in row.items()} for row in rows)
    path.write_text(out.getvalue(), encoding="utf-8-sig", newline="")  # without the mark Excel reads it as Latin-1


def read(path: Path, pairs: Sequence[Candidate]) -> tuple[list[Preference], list[Fault], int]:
    """The preferences of a file that came back, what is wrong with it, and how many rows nobody has rated yet."""
    known = {pair.id: pair for pair in pairs}
    found: list[Preference] = []
    faults: list[Fault] = []
    seen: set[str] = set()
    blank = 0
    for where, row in _rows(path):
        if isinstance(row, Fault):
            faults.append(row)
            continue
        wrong = next(_wrong(row, known, seen), None)
        if wrong:
            faults.append(Fault(wrong[0], f"{where}: {wrong[1]}", wrong[2]))
            continue
        seen.add(row["pair"])
        if not any(row[name] for name in ("choice", "degree", "safe_1", "safe_2")):
            blank += 1
            continue
        safe = (_label(row["safe_1"]), _label(row["safe_2"]))
        degree: Rating = next(rating for rating in RATINGS if rating == row["degree"].casefold())
        preference = known[row["pair"]].rated(int(row["choice"]), degree, safe, source="people")
        if preference is None:
            what = "the chosen answer is marked unsafe and the other safe; the recipe leaves such pairs out"
            faults.append(Fault(what, f"{where}: choice", "choose the safe answer, or leave the row empty"))
        else:
            found.append(preference)
    return found, faults, blank


def shown(pair: Candidate) -> tuple[str, str, str, str]:
    """What people see of a pair: its id, the dialogue so far, and two answers."""
    turns = pair.prompt
    question = turns[0].content if len(turns) == 1 else "\n\n".join(f"{SPEAKERS[t.role]}: {t.content}" for t in turns)
    return pair.id, question, pair.first, pair.second


def guarded(cell: str) -> str:
    """The cell, so that no spreadsheet takes it for a formula; ``unguarded`` undoes it."""
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def unguarded(cell: str) -> str:
    """The text of a cell that was guarded."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


def _order(pair: Candidate) -> str:
    return pair.id  # a digest: as good as drawn


def _rows(path: Path) -> Iterator[tuple[str, Row | Fault]]:
    if path.suffix == ".jsonl":
        for line in json_rows(path):
            if isinstance(line, Line):
                yield f"{path}:{line.number}", {name: str(line.row.get(name) or "").strip() for name in COLUMNS}
            else:
                yield line.where, line
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in COLUMNS[:-1] if name not in (reader.fieldnames or ())]:
                hint = "keep the columns as they were exported, separated by commas"
                yield str(path), Fault(f"the column {missing[0]!r} is gone", f"{path}:1", hint)
                return
            for row in reader:
                # A spreadsheet may drop the apostrophe, or keep it: both are the same text.
                cells = {name: unguarded(str(row.get(name) or "")).strip() for name in COLUMNS}
                yield f"{path}:{reader.line_num}", cells
    except (UnicodeDecodeError, csv.Error) as error:
        yield str(path), Fault(f"cannot be read: {error}", str(path), "save it as CSV, UTF-8")


def _wrong(row: Row, known: Mapping[str, Candidate], seen: set[str]) -> Iterator[tuple[str, str, str]]:
    """What is wrong with a row, in which column, and the fix."""
    pair = known.get(row["pair"])
    if pair is None:
        yield f"there is no pair {row['pair']!r}", "pair", "was it exported from another run or round?"
        return
    if row["pair"] in seen:
        yield f"the pair {row['pair']} stands twice", "pair", "keep one of the rows"
    for name, text in zip(SHOWN[1:], shown(pair)[1:], strict=True):
        if row[name].split() != text.strip().split():
            yield "this is not the text that was exported", name, "was one column sorted without the others?"
    safety = [row["safe_1"], row["safe_2"]]
    if not any((row["choice"], row["degree"], *safety)):
        return
    if row["choice"] not in ("1", "2"):
        yield f"must be 1 or 2 (got {row['choice']!r})", "choice", "choose one, however close they are"
    if row["degree"].casefold() not in RATINGS:
        yield f"must be one of {', '.join(RATINGS)} (got {row['degree']!r})", "degree", "negligibly also means unsure"
    for name in ("safe_1", "safe_2"):
        given = row[name].casefold()
        if given not in (*YES, *NO, "") or (pair.domain == "safety" and not given):
            yield f"must be yes or no (got {row[name]!r})", name, "pairs about safety need both labels"


def _label(cell: str) -> bool | None:
    return None if not cell else cell.casefold() in YES
