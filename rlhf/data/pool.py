"""The pool of rejection samples: every completion of every round, so that the best of all rounds can be kept (3.2.3).

Up to V3 the paper kept the last round's samples only, and capabilities regressed; the fix was to "include
top-performing samples from all prior iterations". The file is JSON lines, only ever appended to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from rlhf.data.types import Turn, check_turns, located, turns_from_json, turns_to_json
from rlhf.disk import written
from rlhf.errors import DataError

Key = tuple[int, str, str, int, int]


@dataclass(frozen=True, slots=True)
class PoolEntry:
    """One sampled completion.

    Attributes:
        prompt: the turns it answers.
        is_safety: the prompt's tag, which decides which reward model counts.
        scores: name -> score, as the round's reward models gave them (logits); later rounds score again.
        round: 1 for RLHF-V1.
        policy: digest of the artefact that sampled it.
        k: which of the prompt's K completions, from 0.
        finished: whether it ended by itself.
    """

    prompt_id: str
    prompt: tuple[Turn, ...]
    is_safety: bool
    completion: str
    scores: dict[str, float]
    round: int
    policy: str
    temperature: float
    seed: int
    k: int
    finished: bool

    @property
    def key(self) -> Key:
        """What makes it one and the same sample."""
        return (self.round, self.prompt_id, self.policy, self.seed, self.k)

    @property
    def usable(self) -> bool:
        """Whether it can be a target: not if empty or never ended, even where its prompt has no other."""
        return self.finished and bool(self.completion)

    def to_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {**fields, "prompt": turns_to_json(self.prompt)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        for name, kind in _FIELDS.items():
            value = row.get(name)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise DataError(f"field {name!r} must be {_NAMES[kind]} (got {value!r})")
        turns = turns_from_json(row["prompt"], "prompt")
        check_turns(turns, last="user", where=row["prompt_id"])
        return cls(**{**{name: row[name] for name in _FIELDS}, "prompt": turns})


_FIELDS: dict[str, Any] = {
    "prompt_id": str,
    "prompt": list,
    "is_safety": bool,
    "completion": str,
    "scores": dict,
    "round": int,
    "policy": str,
    "temperature": (int, float),
    "seed": int,
    "k": int,
    "finished": bool,
}
_NAMES: dict[Any, str] = {
    str: "text", list: "a list of turns", dict: "an object", int: "a whole number", bool: "true or false",
    (int, float): "a number",
}  # fmt: skip


class Pool(NamedTuple):
    """What a pool file holds."""

    entries: list[PoolEntry]
    torn: int
    """Bytes of a last line that was cut while being written, and left out; 0 in a whole file."""


def append(path: Path, entries: Iterable[PoolEntry]) -> int:
    """Add the entries the file does not hold yet; how many those were.

    A line torn by a crash is cut off first. The file is on disk when this returns.

    Raises:
        DataError: if the file holds another completion under an entry's key.
    """
    held, torn = read(path) if path.exists() else Pool([], 0)
    known = {entry.key: entry for entry in held}
    fresh = []
    for entry in entries:
        same = known.setdefault(entry.key, entry)
        if same is entry:
            fresh.append(entry)
        elif same.completion != entry.completion or same.prompt != entry.prompt:
            what = f"prompt {entry.prompt_id!r} already has another completion {entry.k} in round {entry.round}"
            raise DataError(what, where=str(path), hints=["a sample is never overwritten; start a new pool file"])
    lines = [json.dumps(entry.to_json(), ensure_ascii=False).encode("utf-8", "backslashreplace") for entry in fresh]
    whole = (path.stat().st_size if path.exists() else 0) - torn

    def write() -> None:
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(whole)
            file.seek(max(whole - 1, 0))
            if file.read(1) not in (b"", b"\n"):
                file.write(b"\n")  # a whole last line that lacks its end
            file.writelines(line + b"\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())

    written(write, path, needs=sum(map(len, lines)))
    return len(fresh)


def read(path: Path) -> Pool:
    """All entries of all rounds in the order written, each once; a torn last line is left out and its bytes counted.

    Raises:
        DataError: with file:line, if any other line can't be read.
    """
    entries: dict[Key, PoolEntry] = {}
    prompts: dict[tuple[Turn, ...], tuple[Turn, ...]] = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n") and not _whole(line):
                return Pool(list(entries.values()), len(line))
            try:
                entry = PoolEntry.from_json(json.loads(line))
            except DataError as error:
                raise located(error, f"{path}:{number}") from None
            except (ValueError, AttributeError) as error:
                raise DataError(f"not a pool entry: {error}", where=f"{path}:{number}") from None
            # The K samples of a prompt share its turns: half of the memory of a large pool would be copies of them.
            entry = replace(entry, prompt=prompts.setdefault(entry.prompt, entry.prompt))
            entries.setdefault(entry.key, entry)
    return Pool(list(entries.values()), 0)


def best(entries: Sequence[PoolEntry], scores: Sequence[float]) -> list[PoolEntry]:
    """Per prompt, the entry with the highest score over all rounds given, in the order prompts first appear.

    Args:
        scores: one per entry, by today's reward models: scores of different rounds can't be compared. On a tie the
            earlier entry stays.
    """
    top: dict[str, tuple[float, PoolEntry]] = {}
    for entry, score in zip(entries, scores, strict=True):
        if score != score:
            raise ValueError(f"the score of prompt {entry.prompt_id!r}, completion {entry.k}, is not a number")
        if entry.prompt_id not in top or score > top[entry.prompt_id][0]:
            top[entry.prompt_id] = (score, entry)
    return [entry for _, entry in top.values()]


def _whole(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
