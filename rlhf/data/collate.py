"""Documents to rows to batches: several short documents share a row, and none sees another (paper 3.1).

The paper fills its rows with "all the prompts and answers"; it does not say what attention sees across them. Here a
document starts again at position 0 and no attention mask is given: transformers reads a position that doesn't follow
the one before as the start of another document, and masks accordingly, row by row. Padding is one more such document.
It does so only without a key-value cache: trainers switch it off, whoever calls a model directly says
``use_cache=False``, or documents see one another without a word.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Self

from rlhf.data.chat import IGNORED
from rlhf.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """One document: ids [S] and labels [S], where labels[i] is ids[i] or -100 (models shift by one themselves)."""

    input_ids: list[int]
    labels: list[int]
    id: str = ""

    def to_json(self) -> dict[str, Any]:
        return {"input_ids": self.input_ids, "labels": self.labels, "id": self.id}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        return cls(**row)


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Documents one after the other: ids [S], labels [S], and positions [S] that start again at 0 with each."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    documents: tuple[str, ...] = ()
    """Their names, for the ledger."""

    def as_dict(self) -> dict[str, list[int]]:
        """The columns a Trainer's data set has."""
        return {"input_ids": self.input_ids, "labels": self.labels, "position_ids": self.position_ids}


def share_prefixes(rows: Sequence[Row]) -> list[Row]:
    """Rows, less those that another one begins with: that one bears their loss, too, and bears both names.

    To a causal model an answer inside a long row is the same answer at the end of a short one, so what is read once is
    trained as if it had been read by itself. A row stays by itself where a token would bear loss twice. The others keep
    their order.
    """
    kept = dict(enumerate(rows))
    order = sorted(kept, key=lambda number: rows[number].input_ids)
    for number, after in pairwise(order):  # what a row begins follows it at once, the next longer one first
        short, long = kept[number], kept[after]
        size = len(short.input_ids)
        if long.input_ids[:size] != short.input_ids:
            continue
        pairs = list(zip(short.labels, long.labels[:size], strict=True))
        if any(IGNORED not in pair for pair in pairs):
            continue
        labels = [max(pair) for pair in pairs] + long.labels[size:]
        kept[after] = Row(long.input_ids, labels, f"{short.id}, {long.id}")
        del kept[number]
    return list(kept.values())


def pack(
    rows: Sequence[Row], *, length: int, too_long: Literal["error", "truncate", "split"] = "error"
) -> list[PackedRow]:
    """Fill rows of at most ``length`` tokens with whole documents, best fit first, longest document first.

    Every token of every document occurs exactly once, documents keep their tokens together, and two documents never
    trade tokens: the label of a document's first token is -100, since what stands before it is not its context.
    Documents inside a row stand in the order given, rows in the order of their first document.

    Args:
        too_long: a document longer than ``length`` is an error, loses its end, or is cut into documents that fit.

    Raises:
        DataError: for a document that is too long, if that is an error; or one whose labels don't match its ids.
    """
    documents = [piece for number, row in enumerate(rows) for piece in _fitted(row, number, length, too_long)]
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens free, bin), sorted: the first that fits is the best fit
    for index in sorted(range(len(documents)), key=lambda i: (-len(documents[i].input_ids), i)):
        size = len(documents[index].input_ids)
        place = bisect.bisect_left(room, (size, -1))
        if place == len(room):
            bins.append([])
            free, bin_ = length, len(bins) - 1
        else:
            free, bin_ = room.pop(place)
        bins[bin_].append(index)
        bisect.insort(room, (free - size, bin_))
    return [_joined([documents[index] for index in chosen]) for chosen in sorted(map(sorted, bins))]


def fill(rows: Sequence[PackedRow], *, length: int) -> float:
    """The share of ``length`` that the rows use, on average: 1 is no padding at all."""
    return sum(len(row.input_ids) for row in rows) / (length * len(rows)) if rows else 1.0


def pad_packed(batch: Sequence[Mapping[str, Any]], *, pad_token_id: int) -> dict[str, Tensor]:
    """Packed rows (as dictionaries) to tensors [B, S], padded on the right to the longest: a Trainer's collator.

    No attention mask is among them on purpose: it would switch the block-diagonal one off, as a cache would.
    """
    import torch

    width = max(len(row["input_ids"]) for row in batch)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
    for row in batch:
        missing = width - len(row["input_ids"])
        columns["input_ids"].append([*row["input_ids"], *[pad_token_id] * missing])
        columns["labels"].append([*row["labels"], *[IGNORED] * missing])
        columns["position_ids"].append([*row["position_ids"], *range(missing)])
    return {name: torch.tensor(rows, dtype=torch.long) for name, rows in columns.items()}


def _fitted(row: Row, number: int, length: int, too_long: str) -> list[Row]:
    """The document as documents of 1 to ``length`` tokens; an empty one leaves nothing."""
    ids, labels = list(row.input_ids), list(row.labels)
    if len(ids) != len(labels):
        raise DataError(f"document {number} has {len(ids)} ids and {len(labels)} labels")
    if len(ids) > length and too_long == "error":
        raise DataError(
            f"document {number} has {len(ids)} tokens, a row holds {length}",
            hints=["raise the row length", "or leave such documents out"],
        )
    end = length if too_long == "truncate" else len(ids)
    return [
        Row(ids[start : start + length], labels[start : start + length], row.id)
        for start in range(0, min(len(ids), end), length)
    ]


def _joined(documents: Sequence[Row]) -> PackedRow:
    packed = PackedRow([], [], [], tuple(document.id for document in documents))
    for document in documents:
        packed.input_ids.extend(document.input_ids)
        packed.labels.extend([IGNORED, *document.labels[1:]])
        packed.position_ids.extend(range(len(document.input_ids)))
    return packed
