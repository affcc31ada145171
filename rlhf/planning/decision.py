"""Run a step or skip it, and why: its manifest against what it would be made from now. Writes nothing. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.checkpoint import damage, read_manifest
from rlhf.errors import MissingError
from rlhf.planning.steps import Step
from rlhf.provenance import fingerprint

if TYPE_CHECKING:
    from rlhf.schema import Recipe


@dataclass(frozen=True)
class Decision:
    """Whether a step runs, and the reason in words."""

    run: bool
    reason: str


def ingredients(step: Step, recipe: Recipe, run_dir: Path, before: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the step's result depends on, as its manifest keeps it; `before` is the old one, to save reading."""
    config = fingerprint.relevant(recipe, step.stage)
    inputs = {}
    for name in step.inputs:
        with suppress(MissingError):
            inputs[name] = read_manifest(run_dir / name)["digest"]
    return {
        "config": config,
        "inputs": inputs,
        "code": fingerprint.code_of(step.module),
        "data": fingerprint.data_of(config, before.get("data", {})),
    }


def decide(
    step: Step,
    recipe: Recipe,
    run_dir: Path,
    *,
    upcoming: Collection[str] = (),
    rerun: bool = False,
    reuse: bool = False,
) -> Decision:
    """Run or skip `step`, and why. `upcoming` are the steps that will run before it; nothing is written."""
    folder = run_dir / step.name
    if not folder.exists():
        return Decision(True, "never made")
    if problem := damage(folder):
        return Decision(True, problem if "damaged" in problem or "no finished" in problem else f"damaged: {problem}")
    if rerun:
        return Decision(True, "asked for with --rerun")
    made = read_manifest(folder)
    new = ingredients(step, recipe, run_dir, made)
    reasons = changes(step, made, new, upcoming)
    code = _differing(made.get("accepted") or made["code"], new["code"])
    if reasons or (code and not reuse):
        reasons += (
            [f"code changed: {', '.join(code[:2])}{f' and {len(code) - 2} more' if code[2:] else ''}"] if code else []
        )
        return Decision(True, reasons[0] + (f" (and {len(reasons) - 1} more)" if reasons[1:] else ""))
    if code:
        return Decision(False, f"made by other code ({', '.join(code[:2])}), accepted with --reuse")
    return Decision(False, "config, inputs and code unchanged")


def changes(step: Step, made: Mapping[str, Any], new: Mapping[str, Any], upcoming: Collection[str] = ()) -> list[str]:
    """What a step was made from against what it would be made from now, code aside: one phrase per difference."""
    return [
        *fingerprint.changed_settings(made["config"], new["config"]),
        *_changed_inputs(step, made["inputs"], new["inputs"], upcoming),
        *(f"{path} changed" for path in _differing(_checksums(made.get("data", {})), _checksums(new["data"]))),
    ]


def _changed_inputs(
    step: Step, old: Mapping[str, str], new: Mapping[str, str], upcoming: Collection[str]
) -> Iterator[str]:
    for name in step.inputs:
        if name in upcoming:
            yield f"{name} will be made again" if name in old else f"reads {name} now"
        elif name not in old:
            yield f"reads {name} now"
        elif name not in new:
            yield f"{name} is missing"
        elif old[name] != new[name]:
            yield f"{name} was made again since"
    yield from (f"reads {name} no longer" for name in old if name not in step.inputs)


def _checksums(data: Mapping[str, Any]) -> dict[str, str]:
    return {path: facts["sha256"] for path, facts in data.items()}


def _differing(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    return [path for path in sorted({*old, *new}) if old.get(path) != new.get(path)]


def plan(
    steps: Sequence[Step], recipe: Recipe, run_dir: Path, *, rerun: bool = False, reuse: bool = False
) -> list[tuple[Step, Decision]]:
    """What a run would decide for each step, before anything is run.

    A step after one that runs is expected to run; if the earlier one then comes out bit for bit as before, it is not.
    """
    decisions: list[tuple[Step, Decision]] = []
    upcoming: set[str] = set()
    for step in steps:
        decision = decide(step, recipe, run_dir, upcoming=upcoming, rerun=rerun, reuse=reuse)
        decisions.append((step, decision))
        if decision.run:
            upcoming.add(step.name)
    return decisions
