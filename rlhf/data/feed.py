"""What a stage is fed: prompts, demonstrations, conversations and pairs, from the micro-world or from public sets.

A recipe lists sources; `microworld` is written on the spot from the seed, everything else is read by
`rlhf.data.sources`. Training never sees what evaluation asks: the micro-world holds combinations out, other sources
hold out prompts.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rlhf.data import formats, sources
from rlhf.data.conversations import Conversation, Drawn, Without, said_in, under_instructions, with_changes
from rlhf.data.instructions import WITHDRAWAL
from rlhf.data.ledger import SIDES, Ledger, side_used
from rlhf.data.sources import Counts, Parse
from rlhf.data.split import Side, prompt_digest, prompt_of
from rlhf.data.spool import Rows, Spool
from rlhf.data.types import DOMAINS, Dialogue, Domain, Preference, Prompt, each_jsonl
from rlhf.errors import ConfigError, DataError
from rlhf.microworld import corpus
from rlhf.microworld import dialogues as worldly
from rlhf.schema import MICROWORLD, MicroworldConfig, Source

if TYPE_CHECKING:
    from rlhf.job import Job

Say = Callable[[str], None]
Row = TypeVar("Row", Dialogue, Preference, Prompt)
TEST = SIDES.index("test")


@dataclass(frozen=True, slots=True)
class Split:
    """Pairs to train on and pairs held out, without a prompt in common; they are read from disk as they are used."""

    train: Rows[Preference]
    test: Rows[Preference]


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
    given: Sequence[Source], *, seed: int, stage: str, world: MicroworldConfig, test_share: float, say: Say
) -> list[Dialogue]:
    """Dialogues to imitate (3.1): all of a source, or with `use: split` those whose prompt is not tested."""
    rows: list[Dialogue] = []
    for source in _some(given, stage):
        if source.name == MICROWORLD:
            mix = corpus.DemonstrationMix(cautioned=world.caution_share)
            rows += corpus.demonstrations(random.Random(seed), source.limit or 2500, mix)
        else:
            rows += _not_tested(source, sources.load_dialogues(source, say=say), test_share, say)
    return rows


def _not_tested(source: Source, rows: list[Dialogue], test_share: float, say: Say) -> list[Dialogue]:
    if source.use is None:
        return rows
    sides = [side_used(source, prompt_digest(prompt_of(row)), test_share=test_share) for row in rows]
    kept = [row for row, side in zip(rows, sides, strict=True) if side != "test"]
    say(f"{source.name}: {len(kept):,} dialogues to train on, {len(rows) - len(kept):,} held out by prompt")
    return kept


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
    is_safety: bool | None = None,
    test_share: float,
    say: Say,
) -> list[Prompt]:
    """At most `count` prompts of one side of the split.

    "train" is what policies and reward models learn from. "validation" chooses among checkpoints and temperatures,
    "test" is what the report measures; both ask only for what no stage has learned from.

    Args:
        mix: kinds of the micro-world's questions, of which it writes `count`.
        is_safety: only prompts that have the safety tag, or only those that do not.
    """
    rows: list[Prompt] = []
    for source in _some(given, stage):
        if source.name == MICROWORLD:
            share = world.instruction_share
            rows += _microworld(random.Random(seed), count, mix=mix, instruction_share=share, side=side)
        else:
            rows += _public(source, test_share, say)[side]
    random.Random(seed).shuffle(rows)
    return [row for row in rows if is_safety is None or row.is_safety == is_safety][:count]


def asked(
    job: Job,
    count: int,
    *,
    label: str,
    side: Side = "train",
    mix: Mapping[str, float] | None = None,
    is_safety: bool | None = None,
    instruction_share: float | None = None,
) -> list[Prompt]:
    """Prompts of a stage's own `data`, drawn by the seed of their purpose.

    Args:
        mix: kinds of the micro-world's questions; those that policies are trained on, unless it is given.
        is_safety: only prompts that have the safety tag, or only those that do not.
        instruction_share: instead of the micro-world's.
    """
    world, share = job.recipe.microworld, instruction_share
    return prompts(
        job.config.data,
        count,
        seed=job.seed_of(label),
        stage=job.stage,
        world=world if share is None else world.model_copy(update={"instruction_share": share}),
        mix=mix or both_domains(world),
        side=side,
        is_safety=is_safety,
        test_share=job.recipe.data.test_share,
        say=job.track.say,
    )


def heldout(
    given: Sequence[Source],
    count: int,
    *,
    kinds: Mapping[tuple[str, float], int],
    stage: str,
    world: MicroworldConfig,
    test_share: float,
    say: Say,
) -> list[Prompt]:
    """Prompts to measure with, in equal parts of each kind; sets without kinds give what they have.

    Args:
        kinds: (kind, share of prompts with an instruction), as the micro-world has them -> the seed they are drawn by.
    """
    found: dict[str, Prompt] = {}
    size = count // len(kinds)
    for (kind, instructed), seed in kinds.items():
        part = prompts(
            given,
            10 * size,
            seed=seed,
            stage=stage,
            world=world.model_copy(update={"instruction_share": float(instructed)}),
            mix={kind: 1.0},
            side="test",
            test_share=test_share,
            say=say,
        )
        # No question twice: the same text again is no further evidence.
        asked = {tuple(turn.content for turn in prompt.turns): prompt for prompt in part}
        found |= {prompt.id: prompt for prompt in list(asked.values())[:size]}
    return list(found.values())


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
    unseen: tuple[str, ...] = (),
    test_share: float,
    say: Say = print,
) -> list[Conversation]:
    """What users say over many turns, each under one instruction (3.3), a share of them changed on the way.

    Args:
        lists: what instructions for dialogues of public sets are drawn from; the micro-world has its own.
        unseen: no instruction holds one of these texts.
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
            side = _dialogues(source, test_share, say)[held_out]
            said = [said_in(dialogue, is_safety=source.kind == "safety") for dialogue in side]
            name = f"{stage}-{source.name}"
            rows = under_instructions(said, lists, count, turns=turns, seed=seed, prefix=name, source=source.name)
        allowed = Without(known, unseen)
        found += with_changes(
            allowed.instead(rows, seed), change_share, lists=allowed, seed=seed, withdrawal=withdrawal
        )
    if not found:
        learned = [f"lower {stage}.min_turns", "or let the policy speak for the user: gatt.users=policy"]
        tested = [f"lower {stage}.turns", "or test with all of a source: `use: test`"]
        raise DataError(
            f"{stage}.data holds no {'held-out ' * held_out}dialogue of {min_turns} user turns or more without a system"
            " message",
            hints=tested if held_out else learned,
        )
    return found


def preferences(
    given: Sequence[Source],
    *,
    test_share: float,
    say: Say,
    parse: Parse[Preference] = formats.preference,
    spool: Spool[Preference] | None = None,
) -> dict[Domain, Split]:
    """Pairs of public sets by domain, part of the prompts held out.

    A pair stands once, none is contradicted by another, and no prompt is on both sides: DataError, or left out and
    counted, as the source says.

    Args:
        spool: where to put them, if there is one already.
    """
    spool, ledger = Spool(Preference) if spool is None else spool, Ledger(test_share)
    first = len(spool)
    read: list[tuple[Source, Counts, range]] = []
    for source in given:
        counts, start = Counts(source.name), len(ledger)
        for raw, pair in islice(sources.usable(source, parse, counts), source.limit):
            ledger.add(pair, raw.where, source)
            spool.append(pair)
        if not counts.used:
            raise sources.empty(source, counts)
        read.append((source, counts, range(start, len(ledger))))
    left_out = _left_out(ledger, read)
    found: dict[Domain, tuple[array[int], array[int]]] = {domain: (array("Q"), array("Q")) for domain in DOMAINS}
    for source, counts, numbers in read:
        sides = array("Q"), array("Q")
        for number in numbers:
            if number not in left_out:
                sides[ledger.sides[number] == TEST].append(first + number)
        say(str(counts))
        say(f"{source.name}: {len(sides[0]):,} pairs to train on, {len(sides[1]):,} held out by prompt")
        for all_of, some in zip(found[source.kind], sides, strict=True):
            all_of.extend(some)
    return {domain: Split(Rows(spool, train), Rows(spool, test)) for domain, (train, test) in found.items()}


def _left_out(ledger: Ledger, read: Sequence[tuple[Source, Counts, range]]) -> set[int]:
    """Pairs that stand twice, contradict each other or leak, counted under their reason."""
    left_out: set[int] = set()
    for finding in ledger.findings() if len(ledger) else ():
        for number in finding.pairs:
            source, counts, _ = next(entry for entry in read if number in entry[2])
            if source.on_bad_row == "error":
                raise DataError(str(finding), where=finding.where, hints=[finding.hint, sources.DROP])
            if number not in left_out:
                left_out.add(number)
                counts.drop(finding.what)
    return left_out


def stored(path: Path, kind: type[Row]) -> list[Row]:
    """Rows an earlier stage wrote; none where it had none to write."""
    return list(each_stored(path, kind))


def each_stored(path: Path, kind: type[Row]) -> Iterator[Row]:
    """The same, one at a time."""
    return each_jsonl(path, kind) if path.exists() else iter(())


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
def _dialogues(source: Source, test_share: float, say: Say) -> dict[bool, list[Dialogue]]:
    """Dialogues of a public set by whether they are held out; read once."""
    found: dict[bool, list[Dialogue]] = {True: [], False: []}
    for row in sources.load_dialogues(source, say=say):
        side = side_used(source, prompt_digest(prompt_of(row)), test_share=test_share)
        found[side == "test"].append(row)
    return found


@lru_cache(maxsize=8)
def _public(source: Source, test_share: float, say: Say) -> dict[Side, list[Prompt]]:
    """Prompts of a public set by side; read once, and split as the pairs of the set are."""
    found: dict[Side, list[Prompt]] = {side: [] for side in SIDES}
    for prompt in sources.load_prompts(source, say=say):
        found[side_used(source, prompt_digest(prompt.turns), test_share=test_share)].append(prompt)
    return found


def _some(given: Sequence[Source], stage: str) -> Sequence[Source]:
    if not given:
        raise ConfigError(
            f"{stage}.data is empty",
            hints=[f"name a source: {stage}.data=[{{name: microworld}}]", "or see data/README.md"],
        )
    return given
