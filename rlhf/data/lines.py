"""Lines of a file, read strictly: what is malformed becomes a fault with file:line:column and the way to mend it.

Nothing is guessed: a key given twice or a number JSON doesn't have is a fault, as is what editors and tools leave
behind (a byte order mark, CRLF, NUL). Memory is bounded by the longest line allowed.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, TextIO, cast

from rlhf.errors import DataError

LONGEST = 8 * 1024**2  # bytes of a line; an hour of dialogue is a tenth of that
BOMB_RATIO = 200  # no text shrinks to less than a two-hundredth: it is a file made to fill memories and disks
BOMB_BYTES = 64 * 1024**2
BOM = b"\xef\xbb\xbf"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with data: what, where (file:line:column) and how to mend it."""

    what: str
    where: str
    hint: str

    def error(self) -> DataError:
        """The fault as the error that stops a stage."""
        return DataError(self.what, where=self.where, hints=[self.hint] if self.hint else [])


@dataclass(frozen=True, slots=True)
class Line:
    """A line that holds one JSON object: its number from 1, the object, and the text, in which columns are counted."""

    number: int
    row: Row
    text: str


def json_rows(path: Path) -> Iterator[Line | Fault]:
    """Every line of a ``.jsonl`` or ``.jsonl.gz`` file that is not blank: a row, or what is wrong with it."""
    crlf = 0
    for number, raw in _raw_lines(path):
        if isinstance(raw, Fault):
            yield raw
            continue
        if not raw.strip():
            continue
        if raw.endswith(b"\r\n"):
            crlf = crlf or number
            raw = raw[:-2] + b"\n"
        yield _parsed(path, number, raw)
    if crlf:
        what = "lines end in CRLF, as on Windows"
        yield Fault(what, f"{path}:{crlf}", "convert it: sed -i 's/\\r$//' FILE")


def json_lines(path: Path) -> Iterator[tuple[int, Row]]:
    """``(line number, object)`` for every line that is not blank; the first fault is raised."""
    for line in json_rows(path):
        if isinstance(line, Fault):
            raise line.error()
        yield line.number, line.row


def open_text(path: Path) -> TextIO:
    """The file opened for reading as UTF-8, unpacked if it ends in ``.gz``; lines are split at ``\\n`` only."""
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8", newline="\n"))
    return path.open(encoding="utf-8", newline="\n")


def text_lines(path: Path, file: TextIO) -> Iterator[tuple[int, str]]:
    """Numbered lines, with what is unreadable (not UTF-8, a cut or foreign gzip) told as ``DataError``."""
    number = 0
    try:
        for number, line in enumerate(file, start=1):
            yield number, line
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"cannot be read: {error}", where=f"{path}:{number + 1}") from None


def column_of(text: str, complaint: str) -> int:
    """The column, from 1, of the first key of ``text`` that a complaint names; 1 where it names none."""
    for name in re.findall(r"\w+", complaint):
        if key := re.search(rf'"{name}"\s*:', text):
            return key.start() + 1
    return 1


# ── bytes to lines ───────────────────────────────────────────────────────────────────────────────────────────────────


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes | Fault]]:
    """Numbered lines as bytes; a line that is too long is skipped without ever being held whole."""
    number = 0
    packed = path.suffix == ".gz"
    allowed = max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size)
    try:
        with cast(IO[bytes], gzip.open(path)) if packed else path.open("rb") as file:
            read = 0
            while raw := file.readline(LONGEST + 1):
                number += 1
                read += len(raw)
                if len(raw) > LONGEST:
                    where, hint = f"{path}:{number}:1", "is a line break missing? leave the row out or split it"
                    yield number, Fault(f"a line longer than {LONGEST // 1024**2} MiB", where, hint)
                    while raw and not raw.endswith(b"\n"):
                        raw = file.readline(LONGEST)
                        read += len(raw)
                        if packed and read > allowed:
                            break
                else:
                    yield number, raw
                if packed and read > allowed:
                    what = f"unpacks to more than {BOMB_RATIO} times its size"
                    yield number, Fault(what, f"{path}:{number}:1", "no text does; look at what it is, unpacked")
                    return
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield number + 1, Fault(f"cannot be read: {error}", f"{path}:{number + 1}:1", "pack it again: gzip FILE")


# ── lines to rows ────────────────────────────────────────────────────────────────────────────────────────────────────


class _Malformed(Exception):
    """Raised inside the JSON parser, which knows no columns: what, and the text to look for."""


def _no_constant(name: str) -> NoReturn:
    raise _Malformed(f"{name} is no JSON value", name, "write null, or leave the field out")


def _object(pairs: Sequence[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Malformed(f"the key {twice!r} is given twice", f'"{twice}"', "keep one of them")
    return row


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)


def _parsed(path: Path, number: int, raw: bytes) -> Line | Fault:
    def fault(what: str, column: int, hint: str) -> Fault:
        return Fault(what, f"{path}:{number}:{column}", hint)

    if number == 1 and raw.startswith(BOM):
        return fault("it starts with a byte order mark", 1, "save it as UTF-8 without BOM")
    if b"\0" in raw:
        hint = "is it UTF-16, or was a copy cut off? save it as UTF-8"
        return fault("a NUL byte", raw.index(b"\0") + 1, hint)
    try:
        text = raw.decode("utf-8").rstrip("\n")
        row = _decoder.decode(text)
    except UnicodeDecodeError as error:
        hint = "save it as UTF-8: iconv -f latin1 -t utf-8 FILE"
        return fault(f"not UTF-8: byte 0x{raw[error.start]:02x}", error.start + 1, hint)
    except json.JSONDecodeError as error:
        if not raw.endswith(b"\n"):
            return fault("the last line is cut off", error.colno, "copy the file again, or remove the line")
        return fault(f"not a line of JSON: {error.msg}", error.colno, "one JSON object a line")
    except _Malformed as error:
        what, needle, hint = error.args
        place = text.rfind(needle)
        return fault(what, place + 1, hint)
    except ValueError as error:  # a number of thousands of digits
        return fault(f"not a line of JSON: {str(error).partition(':')[0]}", 1, "one JSON object a line")
    except RecursionError:
        return fault("not a line of JSON: nested too deep", 1, "one flat JSON object a line")
    if not isinstance(row, dict):
        return fault(f"a row must be a JSON object (got {row!r:.60})", 1, "one JSON object a line")
    return Line(number, row, text)
