"""PPO with scores ten times as large, or not whitened: settings that nobody should want, so it is done from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def scores(times: float, *, whitened: bool) -> Iterator[None]:
    """Inside, PPO climbs this multiple of the combined score; advantages are whitened as ever."""
    if times == 1 and whitened:
        yield
        return
    from stages import ppo  # loads torch, which an arm that is done does without

    advantages_of, whiten = ppo.advantages_of, ppo.whiten

    def larger(config: Any, models: Any, rollout: Any, score: Any, *, ids: Any) -> Any:
        return advantages_of(config, models, rollout, times * score, ids=ids)

    def advantages_only(x: Any, where: Any, moments: Any, *, epsilon: float) -> Any:
        return whiten(x, where, moments, epsilon=epsilon) if whitened or x.ndim > 1 else x

    ppo.advantages_of, ppo.whiten = larger, advantages_only
    try:
        yield
    finally:
        ppo.advantages_of, ppo.whiten = advantages_of, whiten
