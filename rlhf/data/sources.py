"""Public sets and people's own files to records: what is read, from where, and what was left out (data/README.md).

A set of the hub is read at the revision pinned in data/sources.yaml. A file that can't be parsed is a ``DataError``
with file:line. A row that can be read but not used is one too, or is left out and counted by reason, as the recipe
says. Nothing is left out without a word.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from rlhf.data import formats
from rlhf.data.formats import Origin, Refused
from rlhf.data.types import Dialogue, Preference, Prompt, Turn, json_lines, located, open_text, text_lines
from rlhf.errors import ConfigError, DataError, MissingError, did_you_mean, disk_error
from rlhf.schema import Source

T = TypeVar("T")
HasPrompt = TypeVar("HasPrompt", Prompt, Preference, Dialogue)
Located = tuple[str, Mapping[str, Any]]  # where a row stands ("file:line"), and the row

ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".txt", ".txt.gz")


@dataclass(slots=True)
class Counts:
    """How many rows were read and used, and why the others were not; prints as one line."""

    name: str
    read: int = 0
    used: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        reasons = "; ".join(f"{n:,} dropped: {reason}" for reason, n in sorted(self.dropped.items()))
        return f"{self.name}: {self.used:,} of {self.read:,} rows used" + (f"; {reasons}" if reasons else "")


def load_dialogues(source: Source, *, say: Callable[[str], None] = print) -> list[Dialogue]:
    """Demonstrations (3.1); ``say`` is told how many rows were used and why others were not."""
    return _load(source, formats.dialogue, say)


def load_preferences(source: Source, *, say: Callable[[str], None] = print) -> list[Preference]:
    """Rated pairs (3.2.1); those without a rating or safety labels have None there."""
    return _load(source, formats.preference, say)


def load_prompts(source: Source, *, say: Callable[[str], None] = print) -> list[Prompt]:
    """Prompts (3.2.3); pairs and demonstrations give theirs."""
    return _load(source, formats.prompt, say)


def load_texts(source: Source, *, say: Callable[[str], None] = print) -> list[str]:
    """Running text for pretraining; a .txt file holds one text a line."""
    return _load(source, formats.text, say)


def split_by_prompt(
    rows: Sequence[HasPrompt], *, test_share: float | None = None, test_size: int | None = None, seed: int
) -> tuple[list[HasPrompt], list[HasPrompt]]:
    """(train, test) that share no prompt, letter case and blanks aside; each keeps the order given.

    Which prompts are tested follows from a hash of seed and prompt, so it hardly changes when rows are added. Prompts
    with several rows stay whole: where the next doesn't fit into what is left of the test set, a later one is taken.

    Args:
        test_share, test_size: give one: the share of the rows, or their number, at most.

    Raises:
        DataError: if that would leave either side empty.
    """
    if (test_share is None) == (test_size is None):
        raise ValueError("give either test_share or test_size")
    wanted = test_size if test_size is not None else round((test_share or 0.0) * len(rows))
    keys = [_prompt_key(row) for row in rows]
    left, tested = wanted, set()
    for key, size in sorted(Counter(keys).items(), key=lambda item: _hash(seed, item[0])):
        if size <= left:
            tested.add(key)
            left -= size
    train = [row for row, key in zip(rows, keys, strict=True) if key not in tested]
    test = [row for row, key in zip(rows, keys, strict=True) if key in tested]
    if not train or not test:
        what = f"{len(rows)} rows with {len(set(keys))} different prompts can't give a test set of {wanted}"
        raise DataError(what, hints=["ask for another size", "or give a test set of its own"])
    return train, test


def known_sources() -> dict[str, dict[str, Any]]:
    """data/sources.yaml: name -> revision, folders, licence, role."""
    return _known_sources()


def entry_of(name: str, *, where: str | None = None) -> dict[str, Any]:
    """What data/sources.yaml says of a set; ConfigError if it is not listed."""
    known = known_sources()
    if name not in known:
        hints = [did_you_mean(name, known), "sets known by name: " + ", ".join(known), "or give `path`"]
        raise ConfigError(f"there is no data set {name!r}", where=where, hints=[hint for hint in hints if hint])
    return known[name]


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _load(source: Source, parse: Callable[[Mapping[str, Any], Origin], T], say: Callable[[str], None]) -> list[T]:
    """The first ``limit`` usable rows of a source."""
    counts = Counts(source.name)
    found = list(islice(_parsed(source, parse, counts), source.limit))
    say(str(counts))
    if not found:
        what = "no row of it can be used" if counts.read else "it holds no rows"
        raise DataError(f"{source.name} is empty: {what}", where=source.path, hints=["shapes: data/README.md"])
    return found


def _parsed(source: Source, parse: Callable[[Mapping[str, Any], Origin], T], counts: Counts) -> Iterator[T]:
    for where, row in _rows(source):
        counts.read += 1
        try:
            record = parse(row, Origin(f"{source.name}:{_short(where)}", source.name, source.kind == "safety"))
        except DataError as error:
            raise located(error, where) from None
        except Refused as refused:
            if source.on_bad_row == "error":
                hint = "on_bad_row: drop leaves such rows out and counts them"
                raise DataError(refused.reason, where=where, hints=[hint]) from None
            counts.dropped[refused.reason] += 1
            continue
        counts.used += 1
        yield record


def _rows(source: Source) -> Iterator[Located]:
    if source.path is None:
        yield from _hub_rows(source)
        return
    for file in _files(Path(source.path), source.split):
        yield from _file_rows(file)


def _files(path: Path, split: str) -> list[Path]:
    """The file, or the files of a folder that are named after the split."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise MissingError(
            f"there is no file or folder {path}", hints=["correct `path`, or leave it out to use the hub"]
        )
    readable = [file for file in sorted(path.iterdir()) if file.name.endswith(ENDINGS)]
    named = [file for file in readable if re.match(rf"{re.escape(split)}(\.|-\d)", file.name)]
    if not named:
        names = ", ".join(file.name for file in readable[:8]) or "no data file"
        raise MissingError(
            f"{path} holds no file of split {split!r} (it holds {names})",
            hints=[f"name it {split}.jsonl.gz", "or give the file itself as `path`"],
        )
    return named


def _file_rows(path: Path) -> Iterator[Located]:
    if path.name.endswith((".txt", ".txt.gz")):
        with open_text(path) as file:
            for number, line in text_lines(path, file):
                if line.strip():
                    yield f"{path}:{number}", {"text": line.rstrip("\r\n")}
    elif path.name.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")):
        for number, row in json_lines(path):
            yield f"{path}:{number}", row
    elif path.name.endswith(".parquet"):
        yield from _parquet_rows(path)
    else:
        raise DataError(f"can't tell what {path.name} holds", where=str(path), hints=[f"endings: {', '.join(ENDINGS)}"])


def _parquet_rows(path: Path) -> Iterator[Located]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except pyarrow.ArrowException as error:
        raise DataError(f"cannot be read: {error}", where=f"{path}:{number + 1}") from None


def _hub_rows(source: Source) -> Iterator[Located]:
    """Rows of a set on the hub, at the pinned revision and from the folder of the domain."""
    entry = entry_of(source.name)
    import datasets

    try:
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(
            source.name,
            data_dir=entry.get("folders", {}).get(source.kind),
            split=source.split,
            revision=entry["revision"],
        )
    # Offline, not found and not allowed are subclasses of these. A split that doesn't exist is the ValueError.
    except (OSError, ValueError) as error:
        full = disk_error(error, Path.home()) if isinstance(error, OSError) else None
        raise full or MissingError(
            f"data set {source.name!r}, split {source.split!r}, can't be had: {_first_line(error)}",
            where=f"the Hugging Face hub, revision {entry['revision']}",
            hints=["fetch it on a machine with a network and set `path` to its folder", "or name another set"],
        ) from error
    for number, row in enumerate(rows, start=1):
        yield f"{source.name}/{source.split}:{number}", row


@cache
def _known_sources() -> dict[str, dict[str, Any]]:
    import yaml

    # In a checkout the file stands in data/ at the top; in an installed wheel, beside this module.
    beside = Path(__file__).with_name("sources.yaml")
    path = beside if beside.exists() else Path(__file__).parents[2] / "data" / "sources.yaml"
    known: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return known


# ── prompts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _prompt_key(row: Prompt | Preference | Dialogue) -> str:
    match row:
        case Prompt():
            turns: Sequence[Turn] = row.turns
        case Preference():
            turns = row.prompt
        case Dialogue():
            turns = row.turns[:-1]
    return "\n".join(f"{turn.role}: {' '.join(turn.content.casefold().split())}" for turn in turns)


def _hash(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}\n{key}".encode()).hexdigest()


def _short(where: str) -> str:
    return where.rsplit("/", 1)[-1]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
