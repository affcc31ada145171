"""What a stage is fed: prompts, demonstrations, conversations and pairs, from the micro-world or from public sets.

A recipe lists sources; `microworld` is written on the spot from the seed, everything else is read by
`rlhf.data.sources`. Training never sees what evaluation asks: the micro-world holds combinations out, other sources
hold out prompts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

from rlhf.data import sources
from rlhf.data.conversations import Conversation, Drawn, said_in, under_instructions, with_changes
from rlhf.data.instructions import WITHDRAWAL
from rlhf.data.types import Dialogue, Preference, Prompt, read_jsonl
from rlhf.errors import ConfigError, DataError
from rlhf.microworld import corpus
from rlhf.microworld import dialogues as worldly
from rlhf.schema import MICROWORLD, MicroworldConfig, Source

Say = Callable[[str], None]
Row = TypeVar("Row", Dialogue, Preference, Prompt)
HELD_OUT_SHARE = 0.1  # of the prompts of a public set, for each of validation and test
SPLIT = 0  # public sets are split alike whatever the seed of the run, or one stage would train on what another tests
Side = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Split:
    """Rows to train on and rows held out, without a prompt in common."""

    train: list[Preference]
    test: list[Preference]


def texts(given: Sequence[Source], *, words: int, seed: int, stage: str, say: Say) -> list[str]:
    """Running text for pretraining."""
    found: list[str] = []
    for source in _some(given, stage):
        if source.name == MICROWORLD:
            found += corpus.pretraining_texts(random.Random(seed), words)
        else:
            found += sources.load_texts(source, say=say)
    return found


def demonstrations(
    given: Sequence[Source], *, seed: int, stage: str, world: MicroworldConfig, say: Say
) -> list[Dialogue]:
    """Dialogues to imitate (3.1)."""
    rows: list[Dialogue] = []
    for source in _some(given, stage):
        if source.name == MICROWORLD:
            mix = corpus.DemonstrationMix(cautioned=world.caution_share)
            rows += corpus.demonstrations(random.Random(seed), source.limit or 2500, mix)
        else:
            rows += sources.load_dialogues(source, say=say)
    return rows


def both_domains(world: MicroworldConfig) -> dict[str, float]:
    """Kinds of prompts that a policy is trained on: half as helpfulness annotators ask, half as safety ones do."""
    return {kind: (world.helpfulness_mix[kind] + world.safety_mix[kind]) / 2 for kind in world.helpfulness_mix}


def prompts(
    given: Sequence[Source],
    count: int,
    *,
    seed: int,
    stage: str,
    world: MicroworldConfig,
    mix: Mapping[str, float],
    side: Side,
    say: Say,
) -> list[Prompt]:
    """At most `count` prompts of one side of the split.

    "train" is what policies and reward models learn from. "validation" chooses among checkpoints and temperatures,
    "test" is what the report measures; both ask only for what no stage has learned from.
    """
    rows: list[Prompt] = []
    for source in _some(given, stage):
        if source.name == MICROWORLD:
            share = world.instruction_share
            rows += _microworld(random.Random(seed), count, mix=mix, instruction_share=share, side=side)
        else:
            rows += _public(source, say)[side]
    random.Random(seed).shuffle(rows)
    return rows[:count]


def conversations(
    given: Sequence[Source],
    count: int,
    *,
    min_turns: int,
    max_turns: int,
    seed: int,
    held_out: bool,
    stage: str,
    lists: Drawn | None = None,
    change_share: float = 0.0,
    say: Say = print,
) -> list[Conversation]:
    """What users say over many turns, each under one instruction (3.3), a share of them changed on the way.

    Args:
        lists: what instructions for dialogues of public sets are drawn from; the micro-world has its own.
    """
    found: list[Conversation] = []
    turns = (min_turns, max_turns)
    for source in _some(given, stage):
        known, withdrawal = lists or worldly.LISTS, WITHDRAWAL
        if source.name == MICROWORLD:
            rows = worldly.conversations(random.Random(seed), count, turns=turns, held_out=held_out, prefix=stage)
            known, withdrawal = worldly.LISTS, worldly.WITHDRAWAL
        elif lists is None:
            raise ConfigError(
                f"{stage}.data names {source.name}, and there are no instructions to put its dialogues under",
                hints=[f"use {stage}.data=[{{name: {MICROWORLD}}}]"],
            )
        else:
            side = _dialogues(source, say)["test" if held_out else "train"]
            said = [said_in(dialogue, is_safety=source.kind == "safety") for dialogue in side]
            name = f"{stage}-{source.name}"
            rows = under_instructions(said, lists, count, turns=turns, seed=seed, prefix=name, source=source.name)
        found += with_changes(rows, change_share, lists=known, seed=seed, withdrawal=withdrawal)
    if not found:
        raise DataError(
            f"{stage}.data holds no dialogue of {min_turns} user turns or more without a system message",
            hints=[f"lower {stage}.min_turns", "or let the policy speak for the user: gatt.users=policy"],
        )
    return found


def preferences(given: Sequence[Source], *, test_share: float, say: Say) -> dict[str, Split]:
    """Pairs of public sets by domain, part of the prompts held out."""
    found = {domain: Split([], []) for domain in ("helpfulness", "safety")}
    for source in given:
        rows = sources.load_preferences(source, say=say)
        train, test = sources.split_by_prompt(rows, test_share=test_share, seed=SPLIT)
        found[source.kind].train.extend(train)
        found[source.kind].test.extend(test)
        say(f"{source.name}: {len(train):,} pairs to train on, {len(test):,} held out by prompt")
    return found


def stored(path: Path, kind: type[Row]) -> list[Row]:
    """Rows an earlier stage wrote; none where it had none to write."""
    return read_jsonl(path, kind) if path.exists() else []


def _microworld(
    rng: random.Random, count: int, *, mix: Mapping[str, float], instruction_share: float, side: Side
) -> list[Prompt]:
    """Held-out sides ask for held-out combinations only, which facts and lists do not have."""
    if side == "train":
        return corpus.prompts(rng, count, mix=mix, instruction_share=instruction_share, held_out=False)
    rows: list[Prompt] = []
    while len(rows) < count:
        drawn = corpus.prompts(
            rng, count, mix=mix, instruction_share=instruction_share, held_out=True, forms=corpus.HOW_FORMS
        )
        rows += [prompt for prompt in drawn if corpus.for_validation(prompt) == (side == "validation")]
    return rows[:count]


@lru_cache(maxsize=8)
def _dialogues(source: Source, say: Say) -> dict[Side, list[Dialogue]]:
    """Dialogues of a public set to train on, and those held out."""
    rows = sources.load_dialogues(source, say=say)
    train, test = sources.split_by_prompt(rows, test_share=HELD_OUT_SHARE, seed=SPLIT)
    return {"train": train, "test": test}


@lru_cache(maxsize=8)
def _public(source: Source, say: Say) -> dict[Side, list[Prompt]]:
    """Prompts of a public set by side; read once, and split as the pairs of the set are."""
    rest, test = sources.split_by_prompt(sources.load_prompts(source, say=say), test_share=HELD_OUT_SHARE, seed=SPLIT)
    train, validation = sources.split_by_prompt(rest, test_share=HELD_OUT_SHARE, seed=SPLIT + 1)
    return {"train": train, "validation": validation, "test": test}


def _some(given: Sequence[Source], stage: str) -> Sequence[Source]:
    if not given:
        raise ConfigError(
            f"{stage}.data is empty",
            hints=[f"name a source: {stage}.data=[{{name: microworld}}]", "or see data/README.md"],
        )
    return given
