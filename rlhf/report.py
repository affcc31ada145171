"""What a run came to: report.json by its contract, report.html to look at, and the tables that end a run.

Everything is read from the artefacts of finished steps. A partial run gives a partial report: what was not measured is
absent, never filled in. Torch-free; matplotlib and jinja2 are imported only when a page is drawn.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rlhf.disk import write_text
from rlhf.errors import DataError
from rlhf.provenance.manifests import as_made
from rlhf.provenance.origins import settings
from rlhf.reporting.table import markdown, summary
from rlhf.reporting.text import redact
from rlhf.schema import Recipe

__all__ = ["collect", "markdown", "summary", "write"]

SHARED = (
    *("reward_models", "policies", "best_of", "temperature", "multi_turn", "claims"),
    *("win_rates", "attention", "diversity", "checks", "safety_scaling"),
)
"""The tables of report.json that steps contribute to through their results.json."""


class Planned(Protocol):
    """As much of a step of the pipeline as the report needs."""

    @property
    def name(self) -> str: ...

    @property
    def stage(self) -> str: ...

    @property
    def reads(self) -> Mapping[str, Sequence[str]]: ...


def write(
    run_dir: Path, recipe: Recipe, steps: Sequence[Planned], *, origins: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Write `report.json` and `report.html` into the run's folder and return the report.

    Args:
        run_dir: the run's folder, `runs/<run>`.
        recipe: the resolved recipe; of a step that is finished, the settings it was made with take its place.
        steps: every step of the recipe, in order, made or not.
        origins: dotted setting -> where its value came from; without it, each setting shows its default's source.

    Returns:
        report.json as a dictionary; nothing is drawn anew if it and the page's code are unchanged.

    Raises:
        DataError: a manifest or results file of a finished step is not JSON.
    """
    from rlhf.reporting.page import draw, is_current

    today, recipe = {name: value for name, value, _ in settings(recipe)}, as_made(run_dir, recipe)
    report = collect(run_dir, recipe, steps)
    shown = [
        (name, value, (origins or {}).get(name, _source(field)) if value == today[name] else "the run's manifests")
        for name, value, field in settings(recipe)
    ]
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    _replace(run_dir / "report.json", text)
    page = run_dir / "report.html"
    if not is_current(page, text):
        done = [s["artefact"] for s in report["stages"] if s["status"] == "done"]
        metrics = {name: metric_rows(run_dir / name) for name in done}
        _replace(page, draw(report, text, redact_settings(shown), metrics))
    return report


def collect(run_dir: Path, recipe: Recipe, steps: Sequence[Planned]) -> dict[str, Any]:
    """The report of what is finished so far, by the contract of report.json."""
    manifests = {s.name: _json(run_dir / s.name / "manifest.json") for s in steps if _finished(run_dir / s.name)}
    results = {name: _json(path) for name in manifests if (path := run_dir / name / "results.json").exists()}
    stages = [_stage(step, manifests.get(step.name), results.get(step.name, {})) for step in steps]
    report: dict[str, Any] = {
        "run": recipe.run,
        "config": redact(recipe.model_dump(mode="json")),
        "versions": next((m["versions"] for m in reversed(manifests.values()) if m.get("versions")), {}),
        "total_seconds": round(sum(stage.get("seconds", 0.0) for stage in stages), 3),
        "stages": stages,
    }
    for key in SHARED:
        # A table only: rejection's `temperature` is the number it sampled at, and stays with its step.
        parts = [part[key] for part in results.values() if isinstance(part.get(key), Mapping)]
        report[key] = _merged(parts)
    masks = {name: _rows(run_dir / name / "loss_mask.jsonl") for name in manifests}
    report["loss_masks"] = {name: rows for name, rows in masks.items() if rows}
    report["samples"] = [row for part in results.values() for row in part.get("samples", [])]
    return dict(_finite(report))


def redact_settings(shown: Sequence[tuple[str, Any, str]]) -> list[tuple[str, Any, str]]:
    """The settings with what looks like a secret taken out."""
    return [(name, redact(value, name), origin) for name, value, origin in shown]


def _stage(step: Planned, manifest: Mapping[str, Any] | None, results: Mapping[str, Any]) -> dict[str, Any]:
    """One row of `stages`; a step that is not finished has its name and nothing else."""
    entry: dict[str, Any] = {
        "name": step.stage,
        "artefact": step.name,
        "status": "not done" if manifest is None else "done",
        "reads": list(dict.fromkeys(name for names in step.reads.values() for name in names)),
    }
    for key in (
        "seconds",
        "cpu_seconds",
        "peak_rss_mb",
        "tokens",
        "decoder",
        "finished_at",
        "digest",
        "fingerprint",
        "git_commit",
    ):
        if manifest is not None and manifest.get(key) is not None:
            entry[key] = manifest[key]
    own = {key: value for key, value in results.items() if key != "samples" and not _is_shared(key, value)}
    return entry | ({"results": own} if own else {})


def _is_shared(key: str, value: Any) -> bool:
    return key in SHARED and isinstance(value, Mapping)


def _finished(folder: Path) -> bool:
    return (folder / "manifest.json").exists()


def _source(field: Any) -> str:
    extra = field.json_schema_extra
    return str(extra.get("source", "")) if isinstance(extra, dict) else ""


def _merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tables laid over one another, key by key: the later step has the last word."""
    merged: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
            merged[key] = _merged([merged[key], value]) if both else value
    return merged


def _finite(value: Any) -> Any:
    """The value without numbers that are not finite: JSON has none, and a figure nobody has is absent."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items() if not _is_lost(v)}
    if isinstance(value, list):
        return [_finite(v) for v in value if not _is_lost(v)]
    return value


def _is_lost(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path} is not JSON ({error})", hints=[f"make it again: delete {path.parent} and rlhf run"]
        ) from None
    if not isinstance(found, dict):
        raise DataError(f"{path} holds a {type(found).__name__}, not a table")
    return found


def metric_rows(artefact: Path) -> list[dict[str, Any]]:
    """The numbers that a step logged; histograms are for dashboards."""
    rows = _rows(artefact / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not isinstance(value, Mapping)} for row in rows]


def _rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; none if the step logged nothing, and a line cut short by a crash is passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _replace(path: Path, text: str) -> None:
    """Write whole or not at all. Half a surrogate pair in a generated text becomes a question mark."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    write_text(temporary, text)
    os.replace(temporary, path)
