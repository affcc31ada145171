"""Numbers that are not finite stop the run where they arise, with their name and the samples they belong to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.errors import NonFiniteError


def require_finite(
    values: Tensor, name: str, *, ids: Sequence[str], step: int | None = None, where: str | None = None, **batch: Tensor
) -> None:
    """NonFiniteError if a value is nan or infinite.

    Args:
        values: [N, ...], one row a sample.
        name: what they are, in words: "a score of the safety model".
        ids: the N samples by name.
        batch: what they were computed from; it goes into the bundle beside them.
    """
    bad = ~torch.isfinite(values).reshape(len(values), -1).all(-1)
    if not bool(bad.any()):
        return
    rows = [ids[i] for i in bad.nonzero()[:, 0].tolist()]
    shown = ", ".join(rows[:5]) + (f" and {len(rows) - 5} more" if rows[5:] else "")
    raise NonFiniteError(
        f"{name} is not finite" + (f" at step {step}" if step is not None else ""),
        where=f"{where}, samples {shown}" if where else f"samples {shown}",
        tensor=name,
        step=step,
        rows=rows,
        batch={"values": values, **batch},
    )
