"""`rlhf metrics`: what every name in metrics.jsonl means, and what is healthy."""

from __future__ import annotations

from rlhf.commands.request import Request
from rlhf.commands.text import table
from rlhf.errors import ConfigError, did_you_mean
from rlhf.tracking.metrics import METRICS, meaning_of


def main(request: Request) -> int:
    """rlhf metrics."""
    wanted = request.words or [metric.name for metric in METRICS]
    rows = []
    for name in wanted:
        metric = meaning_of(name)
        if metric is None:
            near = did_you_mean(name, [metric.name for metric in METRICS])
            raise ConfigError(f"no metric {name}", hints=[hint for hint in (near, "all of them: rlhf metrics") if hint])
        rows.append([name, metric.meaning + (f" ({metric.unit})" if metric.unit else ""), metric.healthy])
    table([["metric", "meaning", "healthy"], *rows])
    return 0
