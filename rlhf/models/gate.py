"""The gate before every stage that learns from scores: a reward model must beat chance to be learned from.

Ours. The paper calls reward accuracy "one of the most important proxies for the final performance"; a policy that
climbs a score no better than a coin learns nothing, and takes hours to show it. Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf.data.types import DOMAINS
from rlhf.errors import RlhfError
from rlhf.schema import Gate

Say = Callable[[str], None]


def check_gate(artefact: Path, config: Gate, *, stage: str, say: Say) -> None:
    """Refuse, warn or pass, by the accuracy of both models of an artefact on held-out pairs of their own domain.

    Raises:
        RlhfError: if one is below `min_accuracy`, or was never measured, and `reward_gate` is `refuse`.
    """
    if config.reward_gate == "ignore":
        return
    measured: dict[str, Any] = {}
    if (results := artefact / "results.json").exists():
        measured = json.loads(results.read_text(encoding="utf-8")).get("reward_models", {})
    for name in DOMAINS:
        own = measured.get(name, {}).get(name)
        if own is not None and own["accuracy"]["all"] >= config.min_accuracy:
            continue
        if own is None:
            problem = f"the {name} model of {artefact.name} was never measured on held-out pairs"
        else:
            accuracy, (low, high) = own["accuracy"]["all"], own["interval"]["all"]
            problem = (
                f"the {name} model of {artefact.name} is right on {accuracy:.1%} of {own['pairs']['all']:,} held-out"
                f" pairs (95% interval {low:.1%} to {high:.1%}), below {stage}.min_accuracy={config.min_accuracy:g}"
            )
        if config.reward_gate == "warn":
            say(f"warning: {problem}")
            continue
        raise RlhfError(
            problem,
            where="reward models in report.html show where it fails",
            hints=[
                f"{stage}.reward_gate=ignore learns from it all the same (warn says so, too)",
                f"or lower the bar: {stage}.min_accuracy=0.5",
            ],
        )
