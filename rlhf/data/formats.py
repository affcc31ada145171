"""A row of a public set, in any of the shapes people publish, to one of our records.

Two ways to fail: ``DataError``, the row isn't of a known shape and the file is wrong; ``Refused``, the row is of a
known shape but can't be used, with a reason to count it under.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf.data.chat import TAGS, encode_completion, forbidden_tags
from rlhf.data.types import (
    RATINGS,
    Dialogue,
    Preference,
    Prompt,
    Rating,
    Role,
    Turn,
    check_turns,
    number,
    turns_from_json,
)
from rlhf.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = Mapping[str, Any]

# What Llama 2's format can't hold; a tokenizer with other control tokens is asked again when the row is encoded.
CONTROL = (*TAGS, "<s>", "</s>")

# Share of the votes that the winner is ahead by, from the highest: all agree, three of five, two of five.
VOTES: tuple[tuple[float, Rating], ...] = (
    (1.0, "significantly"),
    (0.6, "better"),
    (0.4, "slightly"),
    (0.0, "negligibly"),
)

DEGREES: dict[str, Rating] = {
    "significantly-better": "significantly",
    "better": "better",
    "slightly-better": "slightly",
    "negligibly-better": "negligibly",
    "unsure": "negligibly",
}

# Columns that a row may have; one that is nearly called so is taken for a slip of the pen.
OPTIONAL = (
    "rating",
    "degree",
    "chosen_safe",
    "rejected_safe",
    "is_safety",
    "source",
    *(f"votes_{side}" for side in ("chosen", "rejected", "tie")),
)

# Dialogues in shapes that are not read, by the column that tells them.
RENAMED = {
    "conversations": "ShareGPT's shape is not read: rename conversations to messages, from to role, value to content,"
    " and the roles human and gpt to user and assistant",
    "instruction": "Alpaca's shape is not read: rename instruction to prompt, with any input behind it, and output to"
    " completion",
}

HH_TURN = re.compile(r"\n\n(Human|Assistant): ?")


class Refused(Exception):
    """The row can be read but not used; `column` is the key of the row that is to blame, where one is."""

    def __init__(self, reason: str, column: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.column = column


@dataclass(frozen=True, slots=True)
class Origin:
    """What a row doesn't say itself: its id, its source, and whether its set is a safety set."""

    id: str
    source: str
    is_safety: bool


def dialogue(row: Row, origin: Origin) -> Dialogue:
    """A demonstration: ``messages`` or ``turns``, or ``prompt`` with ``completion``."""
    if "messages" in row or "turns" in row:
        field = "messages" if "messages" in row else "turns"
        turns = turns_from_json(row[field], field)
    elif "prompt" in row and "completion" in row:
        turns = (*_turns(row["prompt"], "prompt"), *_turns(row["completion"], "completion", "assistant"))
    else:
        raise _unknown(row, "messages, turns, or prompt with completion")
    _usable(turns, last="assistant", column="messages")
    return Dialogue(_id(row, origin), turns, _source(row, origin))


def prompt(row: Row, origin: Origin) -> Prompt:
    """What a policy is asked: a prompt of its own, or that of a pair or a demonstration."""
    if "chosen" in row:
        turns = _pair(row)[0]
    elif "prompt" in row:
        turns = _turns(row["prompt"], "prompt")
    elif isinstance(row.get("turns"), list) and all(isinstance(turn, str) for turn in row["turns"]):
        if len(row["turns"]) > 1:
            raise Refused("several user turns and no answers between them")
        turns = tuple(Turn("user", turn) for turn in row["turns"])
    elif "messages" in row or "turns" in row:
        field = "messages" if "messages" in row else "turns"
        turns = turns_from_json(row[field], field)
        turns = turns[:-1] if turns and turns[-1].role == "assistant" else turns
    else:
        raise _unknown(row, "prompt, messages, turns or chosen")
    _usable(turns, last="user", column="prompt")
    kind = row.get("kind")
    return Prompt(
        id=_id(row, origin),
        turns=turns,
        source=_source(row, origin),
        is_safety=_flag(row, "is_safety", origin.is_safety) is True,
        kind=kind if isinstance(kind, str) else "",
    )


def preference(row: Row, origin: Origin) -> Preference:
    """A rated pair: HH's two texts, TRL's message lists, or our own record."""
    turns, chosen, rejected = _pair(row)
    _usable(turns, last="user", column="prompt")
    for column, reply in (("chosen", chosen), ("rejected", rejected)):
        _usable_text(reply, column)
    if chosen.strip() == rejected.strip():
        raise Refused("chosen and rejected are the same", "rejected")
    chosen_safe, rejected_safe = _flag(row, "chosen_safe", None), _flag(row, "rejected_safe", None)
    if chosen_safe is False and rejected_safe is True:
        raise Refused("chosen is marked unsafe and rejected safe", "chosen_safe")
    kind = row.get("kind")
    return Preference(
        id=_id(row, origin),
        prompt=turns,
        chosen=chosen,
        rejected=rejected,
        source=_source(row, origin),
        rating=_rating(row),
        chosen_safe=chosen_safe,
        rejected_safe=rejected_safe,
        is_safety=_flag(row, "is_safety", origin.is_safety) is True,
        kind=kind if isinstance(kind, str) else "",
        margin=number(row, "margin"),
    )


def preference_read_by(tokenizer: PreTrainedTokenizerBase) -> Callable[[Row, Origin], Preference]:
    """`preference`, and `require_apart` of what it makes."""

    def parse(row: Row, origin: Origin) -> Preference:
        pair = preference(row, origin)
        require_apart(pair, tokenizer)
        return pair

    return parse


def require_apart(pair: Preference, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ``Refused`` for a pair that this tokenizer would read control tokens in, or whose replies it can't tell
    apart: texts may differ in what it doesn't see."""
    tags = forbidden_tags(tokenizer)
    said = [*(("prompt", turn.content) for turn in pair.prompt), ("chosen", pair.chosen), ("rejected", pair.rejected)]
    for column, message in said:
        if found := next((tag for tag in tags if tag in message), None):
            raise Refused(f"a message holds {found}", column)
    if encode_completion(tokenizer, pair.chosen) == encode_completion(tokenizer, pair.rejected):
        raise Refused("chosen and rejected are the same tokens", "rejected")


def text(row: Row, origin: Origin) -> str:
    """Running text."""
    value = row.get("text")
    if not isinstance(value, str):
        raise _unknown(row, "text")
    _valid_unicode(value, "text")
    if not value.strip():
        raise Refused("an empty text")
    return value


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _pair(row: Row) -> tuple[tuple[Turn, ...], str, str]:
    """The prompt's turns and the two replies."""
    if "chosen" not in row or "rejected" not in row:
        raise _unknown(row, "chosen and rejected")
    sides = (row["chosen"], row["rejected"])
    if "prompt" not in row and all(isinstance(side, str) for side in sides):
        return _split_pair(*(hh_turns(side) for side in sides))
    if all(isinstance(side, str) for side in sides):
        return _turns(row["prompt"], "prompt"), *sides
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        if not isinstance(side, list) and any(isinstance(other, str) for other in sides if other is not side):
            raise DataError(f"field {name!r} must be text, as the other reply is (got {side!r:.60})")
    chosen, rejected = (turns_from_json(side, name) for side, name in zip(sides, ("chosen", "rejected"), strict=True))
    if "prompt" in row and len(chosen) == len(rejected) == 1:
        return _turns(row["prompt"], "prompt"), _assistant(chosen[0]), _assistant(rejected[0])
    return _split_pair(chosen, rejected)


def _split_pair(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> tuple[tuple[Turn, ...], str, str]:
    if tuple(chosen[:-1]) != tuple(rejected[:-1]):
        raise Refused("the dialogues differ elsewhere than in the last reply")
    if not chosen[:-1]:
        raise Refused("no prompt before the reply")
    return tuple(chosen[:-1]), _assistant(chosen[-1]), _assistant(rejected[-1])


def hh_turns(dialogue: str) -> tuple[Turn, ...]:
    """The turns of HH's text form, "\\n\\nHuman: ..\\n\\nAssistant: ..", trimmed of outer blanks."""
    before, *parts = HH_TURN.split(dialogue)
    if before.strip() or not parts:
        raise DataError(f"a dialogue must start with '\\n\\nHuman: ' (got {dialogue[:40]!r})")
    speakers, contents = parts[::2], parts[1::2]
    return tuple(
        Turn("user" if speaker == "Human" else "assistant", content.strip())
        for speaker, content in zip(speakers, contents, strict=True)
    )


def _turns(value: object, field: str, speaker: Role = "user") -> tuple[Turn, ...]:
    """Messages, or a text that is one turn of the speaker."""
    if isinstance(value, str):
        return (Turn(speaker, value),)
    if not isinstance(value, list):
        raise DataError(f"field {field!r} must be text or a list of {{role, content}} (got {value!r:.60})")
    return turns_from_json(value, field)


def _assistant(turn: Turn) -> str:
    if turn.role != "assistant":
        raise Refused("the last turn is not the assistant's")
    return turn.content


def _usable(turns: Sequence[Turn], *, last: Role, column: str) -> None:
    """Raise ``Refused`` for what no stage can use; ``last`` is the role of the last turn."""
    try:
        check_turns(turns, last=last)
    except DataError:
        ends_right = bool(turns) and turns[-1].role == last
        reason = "roles don't alternate" if ends_right else f"the last turn is not the {last}'s"
        raise Refused(reason, column) from None
    for turn in turns:
        _usable_text(turn.content, column)


def _usable_text(value: str, column: str) -> None:
    _valid_unicode(value, column)
    if not value.strip():
        raise Refused("an empty message", column)
    if found := next((tag for tag in CONTROL if tag in value), None):
        raise Refused(f"a message holds {found}", column)


def _valid_unicode(value: str, column: str) -> None:
    if value.isascii():
        return
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused("text that isn't valid Unicode", column) from None


# ── fields ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _rating(row: Row) -> Rating | None:
    rating, degree = row.get("rating"), row.get("degree")
    if rating is None and degree is None:
        return _voted(row) if "votes_chosen" in row else None
    if rating is None and degree in DEGREES:
        return DEGREES[degree]
    if rating in RATINGS:
        return next(known for known in RATINGS if known == rating)
    field, value, known = ("degree", degree, tuple(DEGREES)) if rating is None else ("rating", rating, RATINGS)
    raise DataError(f"{field} must be one of {', '.join(known)} (got {value!r})")


def _voted(row: Row) -> Rating:
    """The degree on which several people agree."""
    counts = [row.get(f"votes_{side}", 0) for side in ("chosen", "rejected", "tie")]
    if not all(isinstance(count, int) and count >= 0 for count in counts) or counts[0] <= counts[1]:
        raise DataError(
            f"votes_chosen must be more than votes_rejected, both counts (got {counts[0]!r}, {counts[1]!r})"
        )
    ahead = (counts[0] - counts[1]) / sum(counts)
    return next(rating for least, rating in VOTES if ahead >= least)


def _flag(row: Row, field: str, default: bool | None) -> bool | None:
    value = row.get(field)
    if value is None or isinstance(value, bool):
        return default if value is None else value
    raise DataError(f"field {field!r} must be true, false or null (got {value!r})")


def _id(row: Row, origin: Origin) -> str:
    value = row.get("id")
    return origin.id if value is None else str(value)


def _source(row: Row, origin: Origin) -> str:
    value = row.get("source")
    return value if isinstance(value, str) else origin.source


def _unknown(row: Row, needed: str) -> DataError:
    hints = [hint for column, hint in RENAMED.items() if column in row and "messages" in needed]
    return DataError(
        f"a row needs {needed} (got {', '.join(map(str, row)) or 'no columns'})",
        hints=[*hints, "shapes: data/README.md"][:1],
    )
