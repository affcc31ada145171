"""What a step that met a number that is not finite leaves behind, so that `rlhf replay` can run into it again.

`runs/RUN/bundles/STEP/` holds `bundle.json` (where it was, what, which samples, the settings), `batch.safetensors`
(what was computed with), and the save that the step would go on from. Since a step that goes on comes to the same
numbers bit for bit, that save is enough to meet the same number again. Torch-free, but for the tensors.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.checkpoint import shown, write_manifest
from rlhf.errors import ConfigError, MissingError, NonFiniteError
from rlhf.planning.decision import changes, ingredients
from rlhf.planning.steps import Step, expand
from rlhf.provenance import fingerprint

if TYPE_CHECKING:
    from rlhf.schema import Recipe

PLACE = ("tensor", "part", "step", "iteration", "rows")


def write(run_dir: Path, out: Path, about: Mapping[str, Any], recipe: Recipe, error: NonFiniteError) -> Path:
    """Leave the bundle of a step that works in `out`, in the place of an older one."""
    folder = run_dir / "bundles" / str(about["step"])
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if (out / "resume").exists():
        # Links, not copies: saves are never written to again, and a bundle must not fill the disk.
        shutil.copytree(out / "resume", folder / "resume", copy_function=_linked)
    if error.batch:
        from safetensors.torch import save_file

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in error.batch.items()}
        save_file(tensors, folder / "batch.safetensors")
    place = {name: getattr(error, name) for name in PLACE}
    made = {"what": error.what, "where": error.where, "place": place, "recipe": recipe.model_dump(mode="json")}
    write_manifest(folder, {**about, **made})
    (folder / "manifest.json").replace(folder / "bundle.json")
    return folder


def _linked(source: str, target: str) -> None:
    # The shards are still added to; everything else stays as it is.
    shutil.copyfile(source, target) if source.endswith(".jsonl") else os.link(source, target)


def replay(folder: Path) -> tuple[dict[str, Any], NonFiniteError | None]:
    """Run the step again from the bundle's save to where it stopped: the bundle, and what was met this time.

    Raises MissingError if the settings or inputs it was made from are not there any more; other code is welcome, since
    that is what one mends.
    """
    from rlhf.job import job_of
    from rlhf.pipeline import stage_of_module
    from rlhf.provenance.meter import Journal
    from rlhf.resume.preemption import Stop
    from rlhf.resume.shards import keeping
    from rlhf.schema import Recipe
    from rlhf.tracking.track import Tracker

    bundle = read(folder)
    recipe, run_dir = Recipe.model_validate(bundle["recipe"]), folder.absolute().parents[1]
    step = _step(recipe, bundle["step"])
    now = ingredients(step, recipe, run_dir, {})
    if differences := changes(step, bundle, now):
        raise MissingError(f"{shown(folder)} cannot be replayed: {differences[0]}")
    place = bundle["place"]

    class Passed(Exception):
        """The step that could not be made was made."""

    class Watch(Tracker):
        def ledger(self, part: str, *, step: int, epoch: int, rows: Sequence[int]) -> None:
            if part == (place["part"] or part) and step >= (place["step"] or float("inf")):
                raise Passed

    out = folder / "replay"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    if (folder / "resume").exists():
        shutil.copytree(folder / "resume", out / "resume")
    try:
        with Watch(out, run=recipe.run, step=step.name) as track:
            journal = Journal(out / "events.jsonl")
            job = job_of(step, recipe, run_dir, out, track, bundle["fingerprint"], journal, Stop())
            with keeping(job.shards):
                stage_of_module(step.module)(job)
    except Passed:
        return bundle, None
    except NonFiniteError as error:
        return bundle, error
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return bundle, None


def read(folder: Path) -> dict[str, Any]:
    """A bundle's description."""
    try:
        bundle = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        checksum = bundle.pop("checksum")
    except (OSError, ValueError, KeyError):
        raise MissingError(f"{shown(folder)} is no bundle", hints=["they are in runs/RUN/bundles/"]) from None
    if checksum != fingerprint.digest(bundle):
        raise MissingError(f"{shown(folder)} is damaged: bundle.json does not match its own checksum")
    return dict(bundle)


def _step(recipe: Recipe, name: str) -> Step:
    for step in expand(recipe):
        if step.name == name:
            return step
    raise ConfigError(f"the recipe of the bundle has no step {name}")
