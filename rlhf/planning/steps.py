"""The recipe's table of stages, expanded into the steps of one run. Torch-free."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlhf.errors import ConfigError, did_you_mean
from rlhf.schema import MICROWORLD

if TYPE_CHECKING:
    from rlhf.schema import Recipe, Source

POLICIES = ("sft", "rejection", "distill", "gatt", "ppo")
"""The stages that make a policy: what the token `policy` stands for. `policies` counts the base model, too."""

ROUND_MAKERS = ("preferences", "rejection")
"""Without either of them, a later round has nothing new, and the stages of a round are done once."""

REFRESHED = ("preferences", "reward")
"""With `refresh: false` these are done in the first round only, and what they made serves all rounds."""


def stage_of(step: str) -> str:
    """`rejection-2` is a step of stage `rejection`."""
    return re.sub(r"-\d+$", "", step)


@dataclass(frozen=True)
class Stage:
    """One row of the table: a job, and the artefacts it reads.

    A token of `reads` is `policy` (the newest policy made before), `policies` (all of them, oldest first, and the base
    model), the name of a stage (its newest artefact), or that name with `*` (all of them, oldest first). With `?` it
    may be missing; so may one with `*`, and `policies`.
    """

    name: str
    help: str
    reads: tuple[str, ...] = ()
    per_round: bool = False
    module: str = ""
    """Where `run(job)` is; stages.NAME unless given."""
    data: str = ""
    """What the stage reads from its setting `data`, in words; empty if it reads nothing there."""
    microworld_only: bool = False
    """Whether nothing but the micro-world has such data."""
    models: int = 0
    """How many models its artefact holds, beside those that its settings ask for (`_kept`)."""
    learners: int = 0
    """How many models it trains at the same time."""

    @property
    def imported_as(self) -> str:
        """The dotted name of the stage's module."""
        return self.module or f"stages.{self.name}"


@dataclass(frozen=True)
class Step:
    """One stage in one round: `rejection-2`. Makes the artefact of its name."""

    name: str
    stage: str
    round: int
    """From 1; 0 for a stage that has no rounds."""
    module: str
    reads: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Token -> the steps it stands for."""
    models: int = 0
    learners: int = 0

    @property
    def inputs(self) -> tuple[str, ...]:
        """Every step whose artefact this one reads, once each."""
        return tuple(dict.fromkeys(name for names in self.reads.values() for name in names))


def table() -> tuple[Stage, ...]:
    """The PIPELINE of stages/__init__.py, found by name: rlhf never imports stages."""
    pipeline: tuple[Stage, ...] = importlib.import_module("stages").PIPELINE
    return pipeline


def expand(recipe: Recipe, pipeline: Sequence[Stage] | None = None) -> list[Step]:
    """The steps of a recipe in order: base, sft, preferences-1, reward-1, rejection-1, preferences-2, ..., evaluate.

    Stages that the recipe leaves out are left out; ConfigError if one that is kept cannot do without them, or without
    data that the recipe does not name.
    """
    stages = [stage for stage in pipeline or table() if stage.name in recipe.stages]
    rounds = recipe.rounds if any(stage.name in ROUND_MAKERS for stage in stages) else 1
    steps: list[Step] = []
    for stage, number in _sequence(stages, rounds):
        if number > 1 and stage.name in REFRESHED and not recipe.refresh:
            continue
        name = f"{stage.name}-{number}" if number else stage.name
        reads = {token: _resolve(token, stage, steps) for token in stage.reads}
        steps.append(Step(name, stage.name, number, stage.imported_as, reads, *_kept(recipe, stage)))
    for stage in stages:
        if stage.data:
            _check_data(recipe, stage)
    return steps


def _kept(recipe: Recipe, stage: Stage) -> tuple[int, int]:
    """How many models a step leaves, and how many it trains at the same time."""
    if stage.name == "base" and recipe.model.path is not None:
        return 0, 0
    more = {"reward": len(recipe.reward.other_margins), "scaling": len(recipe.scaling.shares)}
    return stage.models + more.get(stage.name, 0), stage.learners


def _check_data(recipe: Recipe, stage: Stage) -> None:
    """ConfigError if a stage's `data` is empty but needed, or names what cannot be read."""
    setting = f"{stage.name}.data"
    sources: tuple[Source, ...] = getattr(recipe, stage.name).data
    if not sources and _needs_data(recipe, stage.name):
        hints = [f"name {stage.data}: {setting}=[{{name: NAME, path: FILE}}], shapes in data/README.md"]
        if stage.name == "reward":
            hints.append("or add preferences to the setting `stages`, which makes pairs")
        elif stage.name == "base":
            hints.append("or start from a checkpoint: model.path=FOLDER")
        else:
            hints.append(f"or leave {stage.name} out of the setting `stages`")
        raise ConfigError(f"{setting} is empty, and {stage.name} reads {stage.data}", hints=hints)
    for source in sources:
        annotated = stage.name == "preferences" and recipe.preferences.annotator != "oracle"
        if stage.microworld_only and source.name != MICROWORLD and not annotated:
            raise ConfigError(
                f"{setting} names {source.name}, and only the micro-world has {stage.data}",
                hints=[
                    f"use {setting}=[{{name: {MICROWORLD}}}]",
                    "or name an annotator: preferences.annotator=file or judge",
                    f"or leave {stage.name} out of the setting `stages`, and give rated pairs to reward.data",
                ],
            )
        if source.name == MICROWORLD and stage.name == "reward":
            raise ConfigError(
                f"{setting} names {MICROWORLD}, whose pairs the stage preferences makes",
                hints=["leave it out of reward.data, and add preferences to the setting `stages`"],
            )
        if source.name != MICROWORLD and source.path is None:
            from rlhf.data.sources import entry_of

            entry_of(source, where=f"in {setting}")


def _needs_data(recipe: Recipe, stage: str) -> bool:
    """Whether the stage has nothing to do without data of its own."""
    if stage == "base":
        return recipe.model.path is None
    if stage == "reward":
        return "preferences" not in recipe.stages
    if stage == "evaluate":  # without prompts it still measures the reward models, which may be all there is
        return any(name in recipe.stages for name in ("rejection", "distill", "gatt", "ppo"))
    return True


def _sequence(stages: Sequence[Stage], rounds: int) -> list[tuple[Stage, int]]:
    """Each stage with its round; neighbours that have rounds repeat together."""
    ordered: list[tuple[Stage, int]] = []
    index = 0
    while index < len(stages):
        block = [stages[index]]
        while stages[index].per_round and index + len(block) < len(stages) and stages[index + len(block)].per_round:
            block.append(stages[index + len(block)])
        numbers: Iterable[int] = range(1, rounds + 1) if block[0].per_round else (0,)
        ordered += [(stage, number) for number in numbers for stage in block]
        index += len(block)
    return ordered


def _resolve(token: str, stage: Stage, before: Sequence[Step]) -> tuple[str, ...]:
    """The names of the earlier steps that a token stands for."""
    word = token.rstrip("*?")
    wanted = {"policy": POLICIES, "policies": ("base", *POLICIES)}.get(word, (word,))
    found = tuple(step.name for step in before if step.stage in wanted)
    every = token.endswith("*") or word == "policies"
    if not found and not every and not token.endswith("?"):
        needed = " or ".join(wanted)
        raise ConfigError(
            f"{stage.name} reads {needed}, which this recipe leaves out",
            hints=[f"add {needed} to the setting `stages`"],
        )
    return found if every else found[-1:]


def select(steps: Sequence[Step], wanted: str | None, pipeline: Sequence[Stage] | None = None) -> list[Step]:
    """The steps that `stage=` asks for, in order: stages (all their rounds) or single steps, separated by commas."""
    if not wanted:
        return list(steps)
    known = dict.fromkeys([*(step.stage for step in steps), *(step.name for step in steps)])
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"stage={wanted} names no stage", where="given on the command line")
    for name in names:
        if name in known:
            continue
        if name in [stage.name for stage in pipeline or table()]:
            what, hint = f"stage {name} is not part of this recipe", f"add {name} to the setting `stages`"
        else:
            what, hint = f"unknown stage {name}", did_you_mean(name, known) or ""
        hints = [hint, f"in this recipe: {', '.join(dict.fromkeys(step.stage for step in steps))}"]
        raise ConfigError(what, where="given on the command line", hints=[line for line in hints if line])
    return [step for step in steps if step.stage in names or step.name in names]
