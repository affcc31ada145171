"""What can go wrong for a reason the reader can mend, each with its exit code.

An error says three things: what is wrong (lower case, the offending value shown, no full stop), where it came from,
and at most three ways out. Anything else that escapes is a bug of ours.
"""

import difflib
import errno
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


class RlhfError(Exception):
    """The run failed for a reason that the reader can mend; the command line prints it without a traceback."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, hints: Sequence[str] = ()) -> None:
        if len(hints) > 3:
            raise ValueError(f"at most three hints, got {len(hints)}: {list(hints)}")
        super().__init__(what)
        self.what = what
        self.where = where
        self.hints = tuple(hints)

    def __str__(self) -> str:
        """The message as it is printed: one line, then indented where and hints."""
        return "\n  ".join([self.what, *([self.where] if self.where else []), *self.hints])


class ConfigError(RlhfError):
    """The command or a setting is wrong."""

    exit_code = 2


class DataError(RlhfError):
    """A data file is malformed; `where` is file:line."""

    exit_code = 65


class MissingError(RlhfError):
    """A model, a data set or the artefact of an earlier stage is missing or damaged."""

    exit_code = 69


class LockedError(RlhfError):
    """Another process is writing to this run."""

    exit_code = 73


class DiskError(RlhfError):
    """The disk is full or cannot be written."""

    exit_code = 74


class PreemptedError(RlhfError):
    """The scheduler asked for the machine back; started again, the run goes on."""

    exit_code = 75


class NonFiniteError(RlhfError):
    """A loss, gradient, score, log-probability or KL is not a finite number.

    Args:
        tensor: what is not finite, in words.
        part, step: of the stage, where it has steps; they count from 1.
        rows: places of the samples it comes from, or their names.
        batch: the tensors that were computed with, by name, for who looks into it.
    """

    exit_code = 76

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        hints: Sequence[str] = (),
        tensor: str = "",
        part: str = "",
        step: int | None = None,
        rows: Sequence[int | str] = (),
        batch: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(what, where=where, hints=hints)
        self.tensor, self.part, self.step, self.rows, self.batch = tensor, part, step, tuple(rows), dict(batch or {})
        self.iteration: int | None = None

    def met_in(self, iteration: int | None) -> None:
        """Say in which iteration it was, where the loop has some; the steps of an optimizer are counted otherwise."""
        if iteration is not None:
            self.iteration = iteration
            self.where = ", ".join([*([self.where] if self.where else []), f"iteration {iteration}"])


class UnsafeError(RlhfError):
    """Refused: it would run code or read a pickle from a place the reader did not vouch for."""

    exit_code = 77


FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
FAILING = {
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk does not answer as it should",
    errno.ESTALE: "the network file system has gone away",
}


def disk_error(error: OSError, path: Path | str) -> DiskError | None:
    """The DiskError for a full, read-only or failing disk, with the path; None for any other OSError."""
    if error.errno not in {*FULL, *FAILING}:
        return None
    # The message names what could not be written, which may be inside `path`; free space is asked of what exists.
    written = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else Path(path)
    if error.errno in FAILING:
        hints = ["finished steps are kept; write elsewhere: runs_dir=FOLDER"]
        return DiskError(f"cannot write {written}: {FAILING[error.errno]}", hints=hints)
    return DiskError(
        f"cannot write {written}: {FULL[error.errno]}, {free_bytes(written):,} bytes are free",
        hints=[
            "finished steps are kept; make room and give the same command again",
            "or write elsewhere: runs_dir=FOLDER",
        ],
    )


def free_bytes(path: Path | str) -> int:
    """Bytes a write to `path` could still use; asked of the nearest folder that exists."""
    folder = Path(path).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The hint line `did you mean X?` for the nearest known word, or None if nothing is near.

    A dotted setting is compared whole and by its last part, so that `ppo.kl_cof` and a bare `kl_coef` both find
    `ppo.kl_coef`.
    """
    words = list(known)
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if not near:
        last = {name.rsplit(".", 1)[-1]: name for name in reversed(words)}
        near = [last[part] for part in difflib.get_close_matches(word.rsplit(".", 1)[-1], last, n=1, cutoff=0.75)]
    return f"did you mean {near[0]}?" if near else None
