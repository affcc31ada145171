"""Records on disk, read one at a time: a million of them cost eight bytes each in memory, whatever they hold.

They are written to a file, without a name unless other processes are to open it, one line of JSON each, and found again
by the offset of their line. A file that is mapped into memory would count as memory as it is read; this one does not.
"""

from __future__ import annotations

import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, overload

from rlhf.data.types import Record

T = TypeVar("T")
RecordT = TypeVar("RecordT", bound=Record)
BUFFER = 1024**2


class Spool(Sequence[RecordT]):
    """Records of one class, appended and then read by number; a file without a name is gone with the object."""

    def __init__(self, cls: type[RecordT], path: Path | None = None) -> None:
        self.cls, self.path = cls, path
        self.lists: dict[str, array[int]] = {}
        """Numbers that go with the records, by name: which of them are for what."""
        self._file = path.open("a+b", BUFFER) if path else tempfile.TemporaryFile(buffering=BUFFER)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._starts = array("Q", [0])
        self._flushed = True

    def close(self) -> None:
        """Leave all of it beside `path`, for others to open."""
        assert self.path is not None
        self._file.close()
        for name, numbers in {**self.lists, "": self._starts}.items():
            Path(f"{self.path}.{name}").write_bytes(numbers)

    @classmethod
    def opened(cls, path: Path, of: type[RecordT]) -> Self:
        """What was closed, to be read; the files may be removed then."""
        found = cls(of, path)
        for file in path.parent.glob(f"{path.name}.*"):
            found.lists[file.name.removeprefix(f"{path.name}.")] = array("Q", file.read_bytes())
        found._starts = found.lists.pop("")
        return found

    def append(self, record: RecordT) -> int:
        """Put a record at the end; its number."""
        line = json.dumps(record.to_json(), ensure_ascii=False).encode("utf-8", errors="backslashreplace")
        self._file.write(line)
        self._starts.append(self._starts[-1] + len(line))
        self._flushed = False
        return len(self._starts) - 2

    @overload
    def __getitem__(self, number: int) -> RecordT: ...
    @overload
    def __getitem__(self, number: slice) -> Rows[RecordT]: ...
    def __getitem__(self, number: int | slice) -> RecordT | Rows[RecordT]:
        if isinstance(number, slice):
            return Rows(self, range(len(self))[number])
        if not self._flushed:
            self._file.flush()
            self._flushed = True
        number = range(len(self))[number]
        start, end = self._starts[number], self._starts[number + 1]
        return self.cls.from_json(json.loads(os.pread(self._file.fileno(), end - start, start)))

    def __len__(self) -> int:
        return len(self._starts) - 1


class Named(Sequence[str]):
    """The ids of records, each read when it is asked for."""

    def __init__(self, records: Sequence[Any]) -> None:
        self.records = records

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [record.id for record in self.records[index]]
        found: str = self.records[index].id
        return found

    def __len__(self) -> int:
        return len(self.records)


class Rows(Sequence[T]):
    """Some of a sequence, in an order of their own; what is added to them is of the same sequence."""

    def __init__(self, whole: Sequence[T], numbers: Iterable[int]) -> None:
        self.whole, self.numbers = whole, array("Q", numbers)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Rows[T]: ...
    def __getitem__(self, index: int | slice) -> T | Rows[T]:
        if isinstance(index, slice):
            return Rows(self.whole, self.numbers[index])
        return self.whole[self.numbers[index]]

    def __add__(self, other: Rows[T]) -> Rows[T]:
        return Rows(self.whole, self.numbers + other.numbers)

    def __len__(self) -> int:
        return len(self.numbers)
