"""Pairs as batches: two rows a pair, or one row in which the prompt that both completions share stands once.

    two rows    prompt chosen  padding            one row    prompt chosen rejected  padding
                prompt rejected

In the one row chosen and rejected both see the prompt, go on from its positions, and do not see each other; so the
scores are those of the two rows, for fewer tokens. With long prompts that saves up to half of them; with short prompts
and long completions attention over the longer row costs more than the prompt does, and two rows are faster.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self, get_args

from torch import Tensor
from transformers import PreTrainedModel

from rlhf.models.branches import PADDING, TRUNK, Ids, lay_out, shared_prefix, visible, work_of
from rlhf.models.packing import sees_all
from rlhf.models.score import pad_right, read_score, token_values

CHOSEN = TRUNK + 1
"""The first branch of a pair's row; the rejected completion is the second."""
Layout = Literal["two rows", "shared prompt"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt as ids. A safety label is 1 or 0, or nan where nobody gave one."""

    chosen_ids: Ids
    rejected_ids: Ids
    margin: float
    chosen_safe: float
    rejected_safe: float
    id: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        return cls(**row)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Every pair in one layout: the tokens of its row, or of the longer one, and of all of it without padding."""

    widths: array[int] = field(default_factory=lambda: array("i"))
    tokens: array[int] = field(default_factory=lambda: array("i"))


@dataclass(frozen=True, slots=True)
class Batching:
    """The layout that costs least, and what it comes to over an epoch; `padding` is a share of all its tokens."""

    layout: Layout
    tokens: int
    padding: float
    work: float
    """Of this layout, relative to two rows a pair."""


def length_of(chosen: Ids, rejected: Ids, layout: Layout) -> int:
    """The tokens of the pair's row, or of its longer one."""
    if layout == "two rows":
        return max(len(chosen), len(rejected))
    return len(chosen) + len(rejected) - shared_prefix(chosen, rejected)


def collate(pairs: Sequence[tuple[Ids, Ids]], layout: Layout, *, pad_token_id: int) -> dict[str, Tensor]:
    """(chosen, rejected) ids to the tensors that `pair_scores` reads."""
    if layout == "two rows":
        rows = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
        ids, mask = pad_right(rows, pad_token_id=pad_token_id, device="cpu")
        return {"input_ids": ids, "attention_mask": mask}
    return lay_out([(shared_prefix(*pair), pair) for pair in pairs], pad_token_id=pad_token_id)


def pair_scores(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scores [B] of the chosen and [B] of the rejected completions of a collated batch, each at its last token."""
    if "segments" not in inputs:
        values = token_values(model, inputs["input_ids"], inputs["attention_mask"])
        chosen, rejected = read_score(values, inputs["attention_mask"]).chunk(2)
        return chosen.clone(), rejected.clone()  # fsdp's hooks are on what is returned: no views
    segments = inputs["segments"]
    seen = visible(segments)[:, None]
    values = token_values(model, inputs["input_ids"], seen, position_ids=inputs["position_ids"])
    exists = segments != PADDING
    return read_score(values, exists & (segments <= CHOSEN)).clone(), read_score(values, exists).clone()


def tokens_of(inputs: Mapping[str, Tensor]) -> int:
    """The tokens of a collated batch that are no padding."""
    exists = inputs["segments"] != PADDING if "segments" in inputs else inputs["attention_mask"]
    return int(exists.sum())


def sizes_of(pairs: Iterable[Pair]) -> dict[Layout, Sizes]:
    """What the pairs measure in each layout, in one pass over them."""
    found = {layout: Sizes() for layout in LAYOUTS}
    for pair in pairs:
        chosen, rejected = pair.chosen_ids, pair.rejected_ids
        for layout, sizes in found.items():
            width = length_of(chosen, rejected, layout)
            sizes.widths.append(width)
            sizes.tokens.append(len(chosen) + len(rejected) if layout == "two rows" else width)
    return found


def cheapest(
    model: PreTrainedModel, sizes: Mapping[Layout, Sizes], batches: Mapping[Layout, Iterable[Sequence[int]]]
) -> Batching:
    """The layout with the least work by the lengths at hand, each with its own batches: the places of their pairs."""
    work_of_row = work_of(model)
    work: dict[Layout, int] = {}
    counted: dict[Layout, tuple[int, int]] = {}
    for layout, parts in batches.items():
        rows, widths = 2 if layout == "two rows" else 1, sizes[layout].widths
        work[layout] = padded = 0
        for part in parts:
            width = max(widths[place] for place in part)
            work[layout] += rows * len(part) * work_of_row(width)
            padded += rows * len(part) * width
        counted[layout] = (sum(sizes[layout].tokens), padded)
    able = [layout for layout in batches if layout == "two rows" or sees_all(model)]
    layout = min(able, key=lambda name: work[name])
    tokens, padded = counted[layout]
    return Batching(layout, tokens, 1 - tokens / padded, work[layout] / work["two rows"])
