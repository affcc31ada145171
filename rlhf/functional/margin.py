"""Reward models learn from pairs, and from how sure the annotator was (paper 3.2.2, Table 27)."""

from collections.abc import Mapping
from types import MappingProxyType

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def _table(significantly: float, better: float, slightly: float, negligibly: float) -> Mapping[str, float]:
    return MappingProxyType(
        {"significantly": significantly, "better": better, "slightly": slightly, "negligibly": negligibly}
    )


# Table 27. `none` makes the loss equation 1. Which of the three the released models used is not in the paper.
MARGINS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "none": _table(0.0, 0.0, 0.0, 0.0),
        "small": _table(1.0, 2 / 3, 1 / 3, 0.0),
        "large": _table(3.0, 2.0, 1.0, 0.0),
    }
)


def margin_of(rating: str | None, *, table: str, unrated: float, numeric: float | None = None) -> float:
    """Look up how far apart, in logits, the scores of a pair with this rating should be.

        none          0 for every pair that was graded, by a level or by a number
        small, large  the pair's own number where it has one, else the level's entry in Table 27

    Args:
        rating: `significantly`, `better`, `slightly` or `negligibly`; None for a pair that carries no rating,
            as in most public sets.
        table: `none`, `small` or `large`, the rows of Table 27.
        unrated: the margin of a pair without a rating, in logits. The paper does not give it; ours is 0,
            which leaves equation 1 for such pairs.
        numeric: a margin that the pair brings itself, in logits; None where it has none. Ours: it says more
            than a level, so it goes before the rating.

    Returns:
        m(rating) of equation 2, in logits.

    Raises:
        ValueError: if the table or the rating is not one of those above.
    """
    if table not in MARGINS:
        raise ValueError(f"unknown margin table {table!r}; known: {', '.join(MARGINS)}")
    if numeric is not None:
        return 0.0 if table == "none" else numeric
    if rating is None:
        return unrated
    if rating not in MARGINS[table]:
        raise ValueError(f"unknown rating {rating!r}; known: {', '.join(MARGINS[table])}")
    return MARGINS[table][rating]


def ranking_loss(
    chosen_score: Float[Tensor, " B"],
    rejected_score: Float[Tensor, " B"],
    margin: Float[Tensor, " B"],
) -> Float[Tensor, " B"]:
    """Score the chosen completion above the rejected one, by the margin at least (paper 3.2.2, equation 2).

        L = -log sigmoid(r(x, y_c) - r(x, y_r) - m(rating)) = softplus(m - gap)

    A margin of 0 gives equation 1. The mean over the batch is left to the caller, because the loss is also
    reported per rating.

    Args:
        chosen_score: [B] r(x, y_c), in logits.
        rejected_score: [B] r(x, y_r), in logits.
        margin: [B] m(rating) from `margin_of`, in logits.

    Returns:
        [B] the loss of each pair, in nats.
    """
    return -logsigmoid(chosen_score - rejected_score - margin)
