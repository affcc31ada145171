"""What travels between the stages: turns, dialogues, prompts and rated pairs (paper 3.1, 3.2.1).

Plain records, free of torch, so that anything may read a JSON-lines file of them. Every record checks itself when it is
made: roles alternate, prompts end with the user, labels come from the paper's lists. A bad row is a ``DataError`` that
names ``file:line``.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar, cast, get_args

from rlhf.data.lines import json_lines
from rlhf.disk import append_line, written
from rlhf.errors import DataError

Role = Literal["system", "user", "assistant"]
Rating = Literal["significantly", "better", "slightly", "negligibly"]
Domain = Literal["helpfulness", "safety"]  # what a pair is rated by; also the name of the reward model of that

LINES = 1000  # written at a time

ROLES: tuple[Role, ...] = get_args(Role)
RATINGS: tuple[Rating, ...] = get_args(Rating)
DOMAINS: tuple[Domain, ...] = get_args(Domain)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a dialogue."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A demonstration: an optional system turn, then user and assistant in turn, the last one the assistant's."""

    id: str
    turns: tuple[Turn, ...]
    source: str

    def __post_init__(self) -> None:
        check_turns(self.turns, last="assistant", where=self.id)

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "turns": turns_to_json(self.turns), "source": self.source}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        return cls(_text(row, "id"), turns_from_json(row.get("turns"), "turns"), _text(row, "source"))


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a policy is asked: turns that end with the user's.

    ``is_safety`` is the paper's IS_SAFETY(p), a prompt that "might elicit potentially unsafe responses" (3.2.3).
    ``kind`` is a free tag; the embedded world writes ``safe``, ``border`` or ``unsafe``.
    """

    id: str
    turns: tuple[Turn, ...]
    source: str
    is_safety: bool
    kind: str = ""

    def __post_init__(self) -> None:
        check_turns(self.turns, last="user", where=self.id)

    def to_json(self) -> dict[str, Any]:
        row = {"id": self.id, "turns": turns_to_json(self.turns), "source": self.source, "is_safety": self.is_safety}
        return {**row, "kind": self.kind}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        return cls(
            id=_text(row, "id"),
            turns=turns_from_json(row.get("turns"), "turns"),
            source=_text(row, "source"),
            is_safety=_flag(row, "is_safety"),
            kind=_text(row, "kind", default=""),
        )


@dataclass(frozen=True, slots=True)
class Preference:
    """Two completions of one prompt, which one a person preferred, and by how much (paper 3.2.1).

    ``rating`` is None for public sets that carry no degree; ``margin`` is a number a set gives instead of a level, in
    logits: how far apart the two scores should be. The safety labels are None where nobody gave them. A pair
    whose chosen completion is unsafe and whose rejected one is safe is refused: the paper leaves such pairs out, "as we
    believe safer responses will also be better/preferred by humans".
    """

    id: str
    prompt: tuple[Turn, ...]
    chosen: str
    rejected: str
    source: str
    rating: Rating | None
    chosen_safe: bool | None
    rejected_safe: bool | None
    is_safety: bool
    kind: str = ""
    margin: float | None = None

    def __post_init__(self) -> None:
        check_turns(self.prompt, last="user", where=self.id)
        if self.margin is not None and not 0 <= self.margin < math.inf:
            raise DataError(f"margin must be a number of logits, 0 or more (got {self.margin!r})", where=self.id)
        if self.rating is not None and self.rating not in RATINGS:
            raise DataError(f"rating must be one of {', '.join(RATINGS)} or null (got {self.rating!r})", where=self.id)
        if self.chosen_safe is False and self.rejected_safe is True:
            what = "the chosen completion is marked unsafe and the rejected one safe; the recipe leaves such pairs out"
            raise DataError(what, where=self.id)

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "prompt": turns_to_json(self.prompt),
            "chosen": self.chosen,
            "rejected": self.rejected,
            "source": self.source,
            "rating": self.rating,
            "chosen_safe": self.chosen_safe,
            "rejected_safe": self.rejected_safe,
            "is_safety": self.is_safety,
            "kind": self.kind,
            **({} if self.margin is None else {"margin": self.margin}),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        return cls(
            id=_text(row, "id"),
            prompt=turns_from_json(row.get("prompt"), "prompt"),
            chosen=_text(row, "chosen"),
            rejected=_text(row, "rejected"),
            source=_text(row, "source"),
            rating=cast("Rating | None", row.get("rating")),
            chosen_safe=_label(row, "chosen_safe"),
            rejected_safe=_label(row, "rejected_safe"),
            is_safety=_flag(row, "is_safety"),
            kind=_text(row, "kind", default=""),
            margin=number(row, "margin"),
        )


def rating_mix(rows: Iterable[Preference]) -> dict[str, float]:
    """The share of every rating among the rated pairs (Fig 25); empty if none is."""
    rated = [row.rating for row in rows if row.rating is not None]
    return {rating: rated.count(rating) / len(rated) for rating in RATINGS} if rated else {}


def check_turns(turns: Sequence[Turn], *, last: Role, where: str | None = None) -> None:
    """Raise ``DataError`` unless ``turns`` is [system] user (assistant user)* and ends with the role ``last``."""
    if not turns:
        raise DataError("a dialogue needs at least one turn (got none)", where=where)
    spoken = turns[1:] if turns[0].role == "system" else turns
    for position, turn in enumerate(spoken):
        expected = "user" if position % 2 == 0 else "assistant"
        if turn.role != expected:
            number = position + 1 + len(turns) - len(spoken)
            what = f"turn {number} of {len(turns)} must be the {expected}'s (got {turn.role!r})"
            raise DataError(
                what, where=where, hints=["roles alternate: an optional system turn, then user, assistant, …"]
            )
    if turns[-1].role != last:
        raise DataError(f"the last turn must be the {last}'s (got {turns[-1].role!r})", where=where)


def turns_to_json(turns: Iterable[Turn]) -> list[dict[str, str]]:
    """The turns as message dictionaries, the shape every chat library reads."""
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def turns_from_json(messages: object, field: str) -> tuple[Turn, ...]:
    """The turns of a list of ``{"role", "content"}``; ``DataError`` names the field and the turn that is not one."""
    if not isinstance(messages, list):
        raise DataError(f"field {field!r} must be a list of {{role, content}} (got {_shown(messages)})")
    turns = []
    for number, message in enumerate(messages, start=1):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str):
            roles = "|".join(ROLES)
            raise DataError(f"{field}[{number}] must be {{role: {roles}, content: text}} (got {_shown(message)})")
        turns.append(Turn(cast(Role, role), content))
    return tuple(turns)


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Record(Protocol):
    """Anything that goes to a line of JSON and comes back."""

    def to_json(self) -> dict[str, Any]: ...

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self: ...


RecordT = TypeVar("RecordT", bound=Record)


def read_jsonl(path: Path, cls: type[RecordT]) -> list[RecordT]:
    """Every row of a ``.jsonl`` or ``.jsonl.gz`` file as ``cls``; ``DataError`` says which ``file:line`` is bad."""
    return list(each_jsonl(path, cls))


def each_jsonl(path: Path, cls: type[RecordT]) -> Iterator[RecordT]:
    """The same, one at a time."""
    for number, row in json_lines(path):
        try:
            yield cls.from_json(row)
        except DataError as error:
            raise located(error, f"{path}:{number}") from None


def write_jsonl(path: Path, rows: Iterable[Record]) -> None:
    """One JSON object a line, UTF-8; gzipped (with no time stamp, so equal rows give equal bytes) if it ends in .gz."""
    # Half of a surrogate pair becomes its own JSON escape.
    lines = (f"{json.dumps(row.to_json(), ensure_ascii=False)}\n".encode(errors="backslashreplace") for row in rows)
    if path.suffix == ".gz":
        packed = gzip.compress(b"".join(lines), mtime=0)
        written(lambda: path.write_bytes(packed), path, needs=len(packed))
        return
    with written(lambda: path.open("wb", buffering=0), path) as file:
        while part := b"".join(islice(lines, LINES)):
            append_line(file, part, path)


def located(error: DataError, where: str) -> DataError:
    """The same complaint with its place, and with the row's id where the complaint already had one."""
    place = f"{where} (row {error.where})" if error.where else where
    return DataError(error.what, where=place, hints=error.hints)


# ── fields ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_MISSING: Any = object()


def _text(row: Mapping[str, Any], field: str, default: Any = _MISSING) -> str:
    value = row.get(field, default)
    if isinstance(value, str):
        return value
    raise DataError(f"field {field!r} must be text (got {'nothing' if value is _MISSING else _shown(value)})")


def _flag(row: Mapping[str, Any], field: str) -> bool:
    value = row.get(field)
    if isinstance(value, bool):
        return value
    raise DataError(f"field {field!r} must be true or false (got {_shown(value)})")


def number(row: Mapping[str, Any], field: str) -> float | None:
    """A number that may be absent."""
    value = row.get(field)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return None if value is None else float(value)
    raise DataError(f"field {field!r} must be a number or null (got {_shown(value)})")


def _label(row: Mapping[str, Any], field: str) -> bool | None:
    return None if row.get(field) is None else _flag(row, field)


def _shown(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
