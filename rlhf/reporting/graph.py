"""The graph of the stages as an arc diagram: one line a step, an arc to everything it reads. It fits a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rlhf.reporting.text import duration

ROW, LEFT, NAMES, BARS, WIDTH = 24, 92, 100, 212, 350


def arcs(stages: Sequence[Mapping[str, Any]]) -> str:
    """An SVG that names every step, draws what it reads, and shows its share of the time as a bar."""
    place = {stage["artefact"]: ROW * i + ROW / 2 for i, stage in enumerate(stages)}
    longest = max((stage.get("seconds", 0.0) for stage in stages), default=0.0) or 1.0
    reach = max((place[s["artefact"]] - place[r] for s in stages for r in s.get("reads", ()) if r in place), default=1)
    parts = []
    for stage in stages:
        y = place[stage["artefact"]]
        for read in stage.get("reads", ()):
            if read in place:
                # The farther back, the wider the arc; square roots keep the near ones apart.
                bend = LEFT - (LEFT - 4) * ((y - place[read]) / reach) ** 0.5
                parts.append(
                    f'<path d="M{LEFT} {place[read]:g} C{bend:.1f} {place[read]:g} {bend:.1f} {y:g} {LEFT} {y:g}"/>'
                )
    for stage in stages:
        y, seconds = place[stage["artefact"]], stage.get("seconds")
        done = stage.get("status") == "done"
        parts.append(f'<circle cx="{LEFT}" cy="{y:g}" r="4" class="{"done" if done else "open"}"/>')
        parts.append(f'<text x="{NAMES}" y="{y + 4:g}">{escape(str(stage["artefact"]))}</text>')
        if seconds is not None:
            bar = max(1.0, 70 * seconds / longest)
            parts.append(f'<rect x="{BARS}" y="{y - 5:g}" width="{bar:.1f}" height="10"/>')
            parts.append(f'<text x="{BARS + bar + 5:.1f}" y="{y + 4:g}" class="quiet">{duration(seconds)}</text>')
    height = ROW * max(1, len(stages))
    return (
        f'<svg class="graph" viewBox="0 0 {WIDTH} {height}" aria-hidden="true" focusable="false">{"".join(parts)}</svg>'
    )
