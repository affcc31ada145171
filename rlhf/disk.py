"""Writing to a disk that may be full: wait for room, say so, write again. Torch-free.

Whatever a run writes goes through `written` or `append_line`. On a full disk or a used-up quota they wait, and write
again from the start of that file or line, so that what was there before stays whole and nothing is written twice.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal, TypeVar

from rlhf.errors import DiskError, disk_error, free_bytes
from rlhf.reporting.text import duration

T = TypeVar("T")
OnDiskFull = Literal["pause", "stop"]

PATIENCE_SECONDS = 30 * 60.0
POLL_SECONDS = 2.0
LINE_SECONDS = 30.0
"""Between two lines to the reader, and between two attempts where free space says nothing, as under a quota."""


@dataclass(frozen=True)
class Patience:
    """How long a write waits for room, and who is told."""

    seconds: float
    say: Callable[[str], None]


_patience: ContextVar[Patience | None] = ContextVar("patience", default=None)


@contextmanager
def patience(on_disk_full: OnDiskFull, say: Callable[[str], None] = print) -> Iterator[None]:
    """Inside, writes wait for room (`pause`) or give up at once (`stop`), which is also what they do outside."""
    token = _patience.set(Patience(PATIENCE_SECONDS, say) if on_disk_full == "pause" else None)
    try:
        yield
    finally:
        _patience.reset(token)


def written(write: Callable[[], T], path: Path, *, needs: int = 0) -> T:
    """What `write` returns, which writes `path` from its start each time it is called; `needs` is its size in bytes.

    Raises:
        DiskError: no room came in time, or the file system is read-only, failing or gone.
    """
    began = time.monotonic()
    while True:
        try:
            return write()
        except Exception as error:  # safetensors and torch report a full disk as errors of their own
            number, limit = disk_errno(error), _patience.get()
            if number is None:
                raise
            waited = time.monotonic() - began
            if number not in (errno.ENOSPC, errno.EDQUOT) or limit is None or waited >= limit.seconds:
                raise _gave_up(error, number, path, needs, waited) from error
            limit.say(
                f"paused: cannot write {path}: {needs:,} bytes are needed, {free_bytes(path):,} are free;"
                f" waiting for room, {duration(limit.seconds - waited)} more"
            )
            _wait(path, needs, until=min(time.monotonic() + LINE_SECONDS, began + limit.seconds))


def write_text(path: Path, text: str) -> None:
    """A file of UTF-8 text; half a surrogate pair becomes a question mark."""
    data = text.encode("utf-8", errors="replace")
    written(lambda: path.write_bytes(data), path, needs=len(data))


def append_line(file: FileIO, line: bytes, path: Path) -> None:
    """Add a line to an unbuffered file, whole: what a full disk let through of it is cut off before another try."""
    end = file.seek(0, 2)

    def write() -> None:
        file.truncate(end)
        rest = memoryview(line)
        while rest:
            rest = rest[file.write(rest) or 0 :]

    written(write, path, needs=len(line))


def disk_errno(error: BaseException | None) -> int | None:
    """The number of the disk's complaint behind an error, whoever reports it; None if the disk is not to blame."""
    while error is not None:
        if isinstance(error, DiskError):
            return None  # it was explained, and waited for, already
        said = re.search(r"\(os error (\d+)\)", str(error))  # how Rust, and so safetensors, writes it
        for number in (error.errno if isinstance(error, OSError) else None, int(said[1]) if said else None):
            if number is not None and disk_error(OSError(number, ""), ""):
                return number
        if "No space left on device" in str(error):  # torch keeps the words only
            return errno.ENOSPC
        error = error.__cause__ or error.__context__
    return None


def _wait(path: Path, needs: int, *, until: float) -> None:
    """Until there is room, or it is time to say something and try anyway: under a quota free space says nothing."""

    def is_room() -> bool:
        return free_bytes(path) + _taken(path) >= max(needs, 1)

    known = not is_room()
    while time.monotonic() < until:
        time.sleep(min(POLL_SECONDS, max(0.0, until - time.monotonic())))
        if known and is_room():
            return


def _taken(path: Path) -> int:
    """What the failed attempt left, and the next one overwrites."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _gave_up(error: BaseException, number: int, path: Path, needs: int, waited: float) -> DiskError:
    named = error.filename if isinstance(error, OSError) and isinstance(error.filename, str) else str(path)
    found = disk_error(OSError(number, "", named), path)
    assert found is not None
    needed = f"{needs:,} bytes are needed" if needs else ""
    paused = f"waited {duration(waited)} for room" if waited >= 1 else ""
    return DiskError(found.what, where=", ".join(part for part in (needed, paused) if part) or None, hints=found.hints)
