"""What a stage's `run(job)` is given: settings, folders to read, one to write, a voice and a memory. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.checkpoint import read_manifest
from rlhf.disk import write_text
from rlhf.planning.steps import Step, stage_of
from rlhf.provenance.meter import Journal
from rlhf.resume.preemption import Stop
from rlhf.resume.saves import Saves
from rlhf.resume.shards import Shards, file_name
from rlhf.schema.setting import seconds

if TYPE_CHECKING:
    from rlhf.schema import Recipe
    from rlhf.tracking.track import Tracker


def derive_seed(*parts: object) -> int:
    """A seed below 2**31 from anything printable: equal parts give equal seeds, on every machine."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4]) & 0x7FFF_FFFF


@dataclass(frozen=True)
class Job:
    """What a stage's `run(job)` gets: settings, folders to read, a folder to write, a voice."""

    name: str
    round: int
    recipe: Recipe
    config: Any
    """The stage's own section of the recipe; of the others only model and microworld may be read."""
    seed: int
    reads: dict[str, tuple[Path, ...]]
    out: Path
    """A temporary folder, which becomes runs/RUN/NAME when the stage returns."""
    track: Tracker
    saves: Saves
    """Where a training loop is; a killed one goes on from there."""
    shards: Shards
    """What was generated so far; a killed stage reads it back."""

    @property
    def stage(self) -> str:
        """The stage of the step: reward of reward-2."""
        return stage_of(self.name)

    def every(self, token: str) -> tuple[Path, ...]:
        """The artefact folders that a token of the stage's `reads` stands for, oldest first."""
        return self.reads[token] if token in self.reads else self.reads[self._spelled(token)]

    def one(self, token: str) -> Path:
        """The one artefact folder of a token; an optional one must be asked for with `every`."""
        (folder,) = self.every(token)
        return folder

    def seed_of(self, label: object) -> int:
        """A seed of this step for one purpose, so that purposes do not share random numbers."""
        return derive_seed(self.seed, label)

    def digest_of(self, token: str) -> str:
        """The content digest of the one artefact of a token."""
        return str(read_manifest(self.one(token))["digest"])

    def write_results(self, values: Mapping[str, Any]) -> None:
        """The stage's share of report.json."""
        write_text(self.out / "results.json", json.dumps(values, indent=1, allow_nan=False))

    def _spelled(self, token: str) -> str:
        return next(name for name in self.reads if name.rstrip("*?") == token.rstrip("*?"))


def job_of(
    step: Step,
    recipe: Recipe,
    run_dir: Path,
    out: Path,
    track: Tracker,
    key: str,
    journal: Journal,
    stop: Stop,
    *,
    strict: bool = False,
    home: Path | None = None,
) -> Job:
    """The job of a step that works in `out`; `key` is the fingerprint that its saves bear.

    `home` is the folder of the leading process, which keeps the saves, where this is another one.
    """
    every = seconds(recipe.save_every)

    def note(event: str, **more: Any) -> None:
        journal.write(event, step.name, **more)

    return Job(
        name=step.name,
        round=step.round,
        recipe=recipe,
        config=getattr(recipe, step.stage),
        seed=derive_seed(recipe.seed, step.name),
        reads={token: tuple(run_dir / name for name in names) for token, names in step.reads.items()},
        out=out,
        track=track,
        saves=Saves(out, key=key, track=track, every=every, stop=stop, strict=strict, note=note, home=home),
        shards=Shards(
            (home or out) / "resume" / file_name(),
            key=key, step=step.name, every=every, stop=stop, strict=strict, say=track.say,
        ),
    )  # fmt: skip
