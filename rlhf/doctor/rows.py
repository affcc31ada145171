"""One pass over the sources of a recipe: malformed rows, repeats, contradictions, and prompts trained on and tested.

Rows are read one at a time by the code that the stages use, so what is said here is what they would do. Kept are
digests: about fifty bytes a pair. Nothing here needs torch.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rlhf.data import formats, sources
from rlhf.data.formats import Refused
from rlhf.data.ledger import Ledger, side_used
from rlhf.data.lines import Fault
from rlhf.data.sources import Counts, Raw
from rlhf.data.split import prompt_digest, prompt_of
from rlhf.data.types import Dialogue, Preference, Prompt
from rlhf.doctor.problems import Problems
from rlhf.errors import DataError
from rlhf.schema import MICROWORLD, Recipe, Source

Record = Preference | Dialogue | Prompt | str
Look = Callable[["Read", Raw, Record], bool]

PARSERS: dict[str, Callable[..., Record]] = {
    "base": formats.text,
    "sft": formats.dialogue,
    "reward": formats.preference,
    "gatt": formats.dialogue,
    **dict.fromkeys(("preferences", "rejection", "distill", "ppo", "scaling", "evaluate"), formats.prompt),
}
TRAINS = ("sft", "rejection", "distill", "gatt", "ppo")  # learns from prompts, or from answers to them


@dataclass(slots=True)
class Read:
    """One source of one stage, what was read of it, and on which sides its prompts are."""

    stage: str
    setting: str
    source: Source
    counts: Counts
    trained: array[int] = field(default_factory=lambda: array("Q"))
    trained_at: array[int] = field(default_factory=lambda: array("Q"))
    tested: set[int] = field(default_factory=set)


def examine(recipe: Recipe, stages: tuple[str, ...], problems: Problems, look: Look) -> list[Read]:
    """Read every source of the stages; ``look`` is shown each usable row, and says whether it stays one."""
    found: list[Read] = []
    for stage in stages:
        ledger = Ledger(recipe.data.test_share)
        owners: list[tuple[int, Read]] = []  # number of the source's first pair
        parse = formats.prompt if stage == "gatt" and recipe.gatt.users == "policy" else PARSERS[stage]
        for number, source in enumerate(getattr(recipe, stage).data):
            if source.name == MICROWORLD:
                continue
            read = Read(stage, f"{stage}.data.{number}", source, Counts(source.name))
            owners.append((len(ledger), read))
            for raw, record in _usable(read, parse, problems):
                if not look(read, raw, record):
                    continue
                if isinstance(record, Preference):
                    ledger.add(record, raw.where, source)
                elif not isinstance(record, str):
                    _note_side(read, record, recipe.data.test_share)
            found.append(read)
        _compare(ledger, owners, problems)
        for _, read in owners[:1]:
            read.tested |= ledger.tested()
    _leaks(found, problems)
    return found


def _usable(read: Read, parse: Callable[..., Record], problems: Problems) -> Iterator[tuple[Raw, Record]]:
    """The rows that a stage would use; the others become problems, or counts where the recipe says drop."""
    source, counts = read.source, read.counts
    try:
        for raw, found in sources.records(source, parse):
            counts.read += 1
            if isinstance(found, Fault):
                problems.add(found)
            elif isinstance(found, Refused):
                if source.on_bad_row == "drop":
                    counts.dropped[found.reason] += 1
                else:
                    problems.add(raw.fault(found.reason, sources.DROP, found.column))
            else:
                counts.used += 1
                yield raw, found
                if counts.used == source.limit:
                    return
    except DataError as error:
        problems.add(Fault(error.what, error.where or source.name, error.hints[0] if error.hints else ""))
        return
    if not counts.read:
        hint = "give it rows, or leave the source out"
        problems.add(Fault("it holds no rows", f"{source.path or source.name}:1:1", hint))


def _note_side(read: Read, row: Dialogue | Prompt, test_share: float) -> None:
    prompt = prompt_digest(prompt_of(row))
    side = side_used(read.source, prompt, test_share=test_share)
    if read.stage == "sft" and read.source.use is None:
        side = "train"
    if side == "test" and read.stage != "gatt":  # which tests nothing
        read.tested.add(prompt)
    elif read.stage in TRAINS and side == "train":
        read.trained.append(prompt)
        read.trained_at.append(read.counts.read)


def _compare(ledger: Ledger, owners: list[tuple[int, Read]], problems: Problems) -> None:
    """Pairs against one another: what the source says decides whether it is a problem or a number."""
    left_out: set[int] = set()
    for finding in ledger.findings() if len(ledger) else ():
        reads = {number: next(read for start, read in reversed(owners) if start <= number) for number in finding.pairs}
        if any(read.source.on_bad_row == "error" for read in reads.values()):
            problems.add(Fault(str(finding), f"{finding.where}:1", finding.hint), kind=finding.what)
            continue
        for number in reads.keys() - left_out:
            left_out.add(number)
            reads[number].counts.drop(finding.what)


def _leaks(found: list[Read], problems: Problems) -> None:
    """Prompts that one stage learns from and another tests: one problem for every two sources."""
    for trains in found:
        for tests in found:
            if trains is tests or not tests.tested:
                continue
            learned = zip(trains.trained, trains.trained_at, strict=True)
            shared = [at for prompt, at in learned if prompt in tests.tested]
            if shared:
                what = f"{len(shared):,} prompts of {trains.setting} are tested by {tests.stage}.data"
                where = f"{trains.source.path or trains.source.name}, the first of them row {shared[0]:,}"
                problems.add(Fault(what, where, f"hold them out: use: split in {trains.setting}"))
