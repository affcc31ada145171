"""What a stage has generated so far, chunk by chunk, so that a kill loses at most a chunk. Torch-free.

A stage asks for its chunks in the same order in every life. Each is one line of `resume/shards-*.jsonl`, added when it
is made, with a checksum over what was asked and what was answered; a new life reads the answers back in turn, and makes
what is missing. Lines reach the disk by the time a save would. Of several processes each keeps its share in a file of
its own; another number of processes has other shares, and other files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO

from rlhf.checkpoint import shown
from rlhf.disk import append_line
from rlhf.errors import MissingError
from rlhf.processes import team
from rlhf.provenance.fingerprint import digest
from rlhf.resume.preemption import Stop

Make = Callable[[], Any]
Chunks = Callable[[str, Make], Any]
"""Given what is asked (as a digest) and how to make it: the answer, a JSON value."""


def file_name() -> str:
    """What this process's chunks are called in `resume/`."""
    return f"shards-{team.rank()}-of-{team.size()}.jsonl"


def afresh(asked: str, make: Make) -> Any:
    """Chunks that nobody keeps."""
    return make()


# One step runs at a time in a process, so whoever samples need not be told who keeps its chunks and counts its tokens.
_keepers: list[tuple[Chunks, Callable[[int, str], None]]] = [(afresh, lambda tokens, decoder: None)]


@contextmanager
def keeping(chunks: Chunks, count: Callable[[int, str], None] | None = None) -> Iterator[None]:
    """Inside, chunks are kept by these; `afresh` where a loop has saves of its own, which say what comes next.

    `count` is told of the tokens that were generated and of the decoder; without it whoever was told before still is.
    """
    _keepers.append((chunks, count or _keepers[-1][1]))
    try:
        yield
    finally:
        _keepers.pop()


def kept(asked: str, make: Make) -> Any:
    """The answer to what is asked: read back if a killed run has left it, made otherwise."""
    return _keepers[-1][0](asked, make)


def generated(tokens: int, decoder: str) -> None:
    """Say that so many tokens were generated, in this life or in one before, and by which decoder."""
    _keepers[-1][1](tokens, decoder)


class Shards:
    """The chunks of one step; `key` is its fingerprint. See `Saves` for the rest."""

    def __init__(
        self, path: Path, *, key: str, step: str, every: float, stop: Stop, strict: bool, say: Callable[[str], None]
    ) -> None:
        self.path, self.key, self.step, self.every, self.stop = path, key, step, every, stop
        self.strict, self.say = strict, say
        self._count = self._end = 0
        self._file: FileIO | None = None
        self._old: BinaryIO | None = path.open("rb") if path.exists() else None
        self._synced = monotonic()

    def __call__(self, asked: str, make: Make) -> Any:
        """The answer that a killed run has left to this question, or a new one, which is kept."""
        if self._old is not None:
            line = self._old.readline()
            if (found := self._read(asked, line)) is not None:
                self._count, self._end = self._count + 1, self._end + len(line)
                return found["value"]
            self._cut(torn=not line.endswith(b"\n"))
        with self.stop.patience():
            value = make()
            self._append(asked, value)
        if self.stop.asked:
            self.close()
            self.stop.leave(self.step)
        return value

    def close(self) -> None:
        """Make durable what was added."""
        if self._file is not None:
            os.fsync(self._file.fileno())
        for file in (self._file, self._old):
            if file is not None:
                file.close()
        self._file = self._old = None

    def _append(self, asked: str, value: Any) -> None:
        if self._file is None:
            self.path.parent.mkdir(exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        body = {"n": self._count, "asked": asked, "value": value}
        line = json.dumps({**body, "sha256": digest([self.key, body])}).encode() + b"\n"
        append_line(self._file, line, self.path)
        self._count += 1
        if monotonic() - self._synced >= self.every:
            os.fsync(self._file.fileno())
            self._synced = monotonic()

    def _read(self, asked: str, line: bytes) -> dict[str, Any] | None:
        """The line, if it is whole and answers this question."""
        try:
            row = json.loads(line)
            checksum = row.pop("sha256")
        except (ValueError, KeyError, AttributeError, TypeError):
            return None
        whole = line.endswith(b"\n") and checksum == digest([self.key, row])
        return row if whole and (row["n"], row["asked"]) == (self._count, asked) else None

    def _cut(self, *, torn: bool) -> None:
        """Nothing more can be read back: drop the rest, and say so unless the kill itself explains it."""
        assert self._old is not None
        self._old.close()
        self._old = None
        if not torn:
            what = f"{shown(self.path)} is damaged: line {self._count + 1} does not match its checksum"
            if self.strict:
                raise MissingError(what, where="--strict", hints=["without --strict it is generated again"])
            self.say(f"warning: {what}; it and what follows are generated again")
        if self.path.stat().st_size > self._end:
            os.truncate(self.path, self._end)
