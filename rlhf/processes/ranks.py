"""Work dealt out to several processes: prompts to answer, rows to score; results are collected once, nothing between.

There is no collective inside the work, so a process whose answers are longer, or that has no prompt at all, holds up
nobody before the end. A process that fails says so to the others there, and they do not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import distributed

from rlhf.errors import NonFiniteError, PreemptedError, RlhfError

Item = TypeVar("Item")
Result = TypeVar("Result")


def dealt(
    items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]], *, cost: Callable[[Item], float]
) -> list[Result]:
    """`work` on all items, each done by one process; every process gets all results, in the order of the items.

    Items of like `cost` go to different processes. On one process this is `work(items)`.

    Raises:
        RlhfError: on the other processes, if `work` failed on one; there the error itself is raised.
        PreemptedError, NonFiniteError: on all of them, if one was asked to stop, or met such a number.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return list(work(items))
    rank, world = distributed.get_rank(), distributed.get_world_size()
    order = sorted(range(len(items)), key=lambda i: cost(items[i]))
    failure: Exception | None = None
    own: list[Result] = []
    try:
        own = list(work([items[i] for i in order[rank::world]]))
    except Exception as error:
        failure = error
    kind = next((kind for kind in (PreemptedError, NonFiniteError) if isinstance(failure, kind)), RlhfError)
    said = None if failure is None else (kind, str(failure))
    shares: list[tuple[list[Result], tuple[type[RlhfError], str] | None]] = [([], None)] * world
    distributed.all_gather_object(shares, (own, said))
    if failure is not None:
        raise failure
    for number, (_, told) in enumerate(shares):
        if told is not None:
            kind, message = told
            raise kind(f"process {number} of {world} failed while sampling: {message}")
    results: dict[int, Result] = {}
    for number, (share, _) in enumerate(shares):
        results.update(zip(order[number::world], share, strict=True))
    return [results[i] for i in range(len(items))]
