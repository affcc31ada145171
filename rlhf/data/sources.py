"""Public sets and people's own files to records: what is read, from where, and what was left out (data/README.md).

A set of the hub is streamed at a pinned revision, and its columns are those it is known by. What is malformed is a
fault with file:line:column. A row that can be read but not used is one too, or is left out and counted by reason, as
the recipe says. Nothing is left out without a word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from rlhf.data import formats, published
from rlhf.data.formats import Origin, Refused
from rlhf.data.lines import Fault, column_of, json_rows, open_text, text_lines
from rlhf.data.split import prompt_digest
from rlhf.data.types import Dialogue, Preference, Prompt
from rlhf.errors import ConfigError, DataError, MissingError, did_you_mean, disk_error
from rlhf.processes import team
from rlhf.schema import Source
from rlhf.security.vetting import require_inside

T = TypeVar("T")
Parse = Callable[[Mapping[str, Any], Origin], T]
SHAPES = "shapes: data/README.md"
DROP = "on_bad_row: drop leaves such rows out and counts them"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".txt", ".txt.gz")


@dataclass(frozen=True, slots=True)
class Raw:
    """A row as it was found: where it stands ("file:line"), the row, and the line, in which columns are counted."""

    where: str
    row: Mapping[str, Any]
    text: str = ""

    def fault(self, what: str, hint: str, column: str = "") -> Fault:
        """The row's fault, at the column of the key that is meant, or that the complaint names."""
        place = f":{column_of(self.text, column or what)}" if self.text else ""
        return Fault(what, f"{self.where}{place}", hint)


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

    def drop(self, reason: str) -> None:
        """One of the rows that were used is left out after all."""
        self.used -= 1
        self.dropped[reason] += 1


def load_dialogues(source: Source, *, say: Callable[[str], None] = print) -> list[Dialogue]:
    """Demonstrations (3.1); ``say`` is told how many rows were used and why others were not."""
    return _load(source, formats.dialogue, say)


def load_preferences(source: Source, *, say: Callable[[str], None] = print) -> list[Preference]:
    """Rated pairs (3.2.1); those without a rating or safety labels have None there."""
    return _load(source, formats.preference, say)


def load_prompts(source: Source, *, say: Callable[[str], None] = print) -> list[Prompt]:
    """Prompts (3.2.3), each once; pairs and demonstrations give theirs."""
    counts, found = Counts(source.name), dict[int, Prompt]()
    for _, prompt in islice(usable(source, formats.prompt, counts), source.limit):
        if found.setdefault(prompt_digest(prompt.turns), prompt) is not prompt:
            counts.drop("the same prompt as an earlier row")
    return _said(list(found.values()), counts, source, say)


def load_texts(source: Source, *, say: Callable[[str], None] = print) -> list[str]:
    """Running text for pretraining; a .txt file holds one text a line."""
    return _load(source, formats.text, say)


def usable(source: Source, parse: Parse[T], counts: Counts) -> Iterator[tuple[Raw, T]]:
    """Each row's record; a fault is raised, and a row that can't be used, too, or it is counted, as the recipe says."""
    for raw, found in records(source, parse):
        counts.read += 1
        if isinstance(found, Refused) and source.on_bad_row == "drop":
            counts.dropped[found.reason] += 1
        elif isinstance(found, Refused):
            raise raw.fault(found.reason, DROP, found.column).error()
        elif isinstance(found, Fault):
            raise found.error()
        else:
            counts.used += 1
            yield raw, found


def records(source: Source, parse: Parse[T]) -> Iterator[tuple[Raw, T | Refused | Fault]]:
    """Every row of a source: its record, why it can't be used, or what is malformed."""
    seen: set[str] = set()
    for raw, wrong in _rows(source):
        wrong = wrong or _misspelt(raw, seen)
        if wrong is not None:
            yield raw, wrong
            continue
        origin = Origin(f"{source.name}:{_short(raw.where)}", source.name, source.kind == "safety")
        try:
            yield raw, parse(raw.row, origin)
        except DataError as error:
            yield raw, raw.fault(error.what, error.hints[0] if error.hints else SHAPES)
        except Refused as refused:
            yield raw, refused


def known_sources() -> dict[str, dict[str, Any]]:
    """data/sources.yaml: name -> revision, columns, shape, licence, role."""
    return _known_sources()


def entry_of(source: Source, *, where: str | None = None) -> dict[str, Any]:
    """What data/sources.yaml says of a set; nothing of one that is not listed, which a commit on the hub must name."""
    known, name = known_sources(), source.name
    if name in known:
        return known[name]
    if source.revision and HUB_NAME.fullmatch(name):
        return {"columns": []}
    hints = [
        did_you_mean(name, known),
        "sets known by name: " + ", ".join(known),
        "or give `path`, or of a set of a plain shape on the hub its `revision`",
    ]
    raise ConfigError(f"there is no data set {name!r}", where=where, hints=[hint for hint in hints if hint])


def commit_of(source: Source) -> str:
    """The commit of the hub that a set is read at: the recipe's, or that of data/sources.yaml; ConfigError if none."""
    revision: str | None = source.revision or entry_of(source).get("revision")
    if revision is None:
        raise ConfigError(
            f"{source.name} is read at a pinned revision only, and none is known",
            where="data/sources.yaml",
            hints=[f"give the commit: {{name: {source.name}, revision: COMMIT}}", "or a copy of the set: `path`"],
        )
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise ConfigError(
            f"revision {revision!r} of {source.name} is no commit: what it points to can change",
            hints=["give the 40 digits of the commit, as the set's page on the hub shows them"],
        )
    return revision


def _load(source: Source, parse: Parse[T], say: Callable[[str], None]) -> list[T]:
    """The first ``limit`` usable rows of a source."""
    counts = Counts(source.name)
    found = [record for _, record in islice(usable(source, parse, counts), source.limit)]
    return _said(found, counts, source, say)


def _said(found: list[T], counts: Counts, source: Source, say: Callable[[str], None]) -> list[T]:
    say(str(counts))
    if not found:
        raise empty(source, counts)
    return found


def empty(source: Source, counts: Counts) -> DataError:
    """The error for a source without a single row to use."""
    what = "no row of it can be used" if counts.read else "it holds no rows"
    return DataError(f"{source.name} is empty: {what}", where=source.path, hints=["shapes: data/README.md"])


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _misspelt(raw: Raw, seen: set[str]) -> Fault | None:
    """The fault of a column that is nearly one that is read: its values would be lost silently."""
    for name in raw.row.keys() - seen:
        seen.add(name)
        near = [] if name in formats.OPTIONAL else get_close_matches(name, formats.OPTIONAL, 1, cutoff=0.85)
        if near and near[0] not in raw.row:
            return raw.fault(f"unknown column {name!r}", f"did you mean {near[0]}?")
    return None


Found = tuple[Raw, Fault | Refused | None]  # a row, and what is wrong with it


def _rows(source: Source) -> Iterator[Found]:
    """Rows of the shapes that `formats` reads; a set published in a shape of its own is brought into one of them."""
    files = files_of(source) if source.path else ()
    hub = _hub_rows(source, streaming=team.size() == 1)
    found = (row for file in files for row in _file_rows(file)) if source.path else hub
    entry = known_sources().get(source.name, {"columns": []})
    if "shape" in entry:
        yield from _shaped(_with_columns(found, entry, source), entry["shape"], source)
    else:
        yield from found if source.path else ((raw, None) for raw in _with_columns(found, entry, source))


def _with_columns(rows: Iterable[Found], entry: Mapping[str, Any], source: Source) -> Iterator[Raw]:
    """The rows, once the first has the columns that the set is known by."""
    for number, (raw, wrong) in enumerate(rows):
        if isinstance(wrong, Fault):
            raise wrong.error()
        if not number and (missing := [name for name in entry["columns"] if name not in raw.row]):
            what = f"{source.name} has no column {missing[0]!r} (it has {', '.join(raw.row)})"
            hints = ["this is another version of the set, or another set", "give rows of a plain shape another `name`"]
            raise DataError(what, where=raw.where, hints=hints)
        yield raw


def _shaped(rows: Iterable[Raw], shape: str, source: Source) -> Iterator[Found]:
    """Pairs of a published shape as plain rows, numbered within the row they come from."""
    before, number = "", 0
    for where, found in published.pairs(shape, ((raw.where, raw.row) for raw in rows), source.kind):
        before, number = where, number + 1 if where == before else 1
        if isinstance(found, Refused):
            yield Raw(where, {}), found
        else:
            yield Raw(f"{where}.{number}", found), None


def files_of(source: Source) -> list[Path]:
    """The file of a source with a path, or the files of its folder that are named after the split."""
    path, split = Path(source.path or "").expanduser(), source.split
    if path.is_file():
        return [path]
    if path.is_dir() and path.name.endswith(ENDINGS):
        raise DataError("it is a folder, not a file", where=str(path), hints=["give the file inside it"])
    if not path.is_dir():
        raise MissingError(
            f"there is no file or folder {path}", hints=["correct `path`, or leave it out to use the hub"]
        )
    readable = [file for file in sorted(path.iterdir()) if file.name.endswith(ENDINGS) and file.is_file()]
    named = [file for file in readable if re.match(rf"{re.escape(split)}(\.|-\d)", file.name)]
    if not named:
        names = ", ".join(file.name for file in readable[:8]) or "no data file"
        raise MissingError(
            f"{path} holds no file of split {split!r} (it holds {names})",
            hints=[f"name it {split}.jsonl.gz", "or give the file itself as `path`"],
        )
    return named


def _file_rows(path: Path) -> Iterator[Found]:
    if path.name.endswith((".txt", ".txt.gz")):
        with open_text(path) as file:
            for number, line in text_lines(path, file):
                if line.strip():
                    yield Raw(f"{path}:{number}", {"text": line.rstrip("\r\n")}), None
    elif path.name.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")):
        for found in json_rows(path):
            if isinstance(found, Fault):
                yield Raw(found.where, {}), found
            else:
                yield Raw(f"{path}:{found.number}", found.row, found.text), None
    elif path.name.endswith(".parquet"):
        yield from _parquet_rows(path)
    else:
        raise DataError(f"can't tell what {path.name} holds", where=str(path), hints=[f"endings: {', '.join(ENDINGS)}"])


def _parquet_rows(path: Path) -> Iterator[Found]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield Raw(f"{path}:{number}", row), None
    except pyarrow.ArrowException as error:
        where = f"{path}:{number + 1}"
        yield Raw(where, {}), Fault(f"cannot be read: {error}", where, "copy the file again")


def fetch(source: Source) -> None:
    """Bring a set of the hub into the cache of `datasets`, where the processes of this machine will read it."""
    next(iter(_hub_rows(source, streaming=False)), None)


def _hub_rows(source: Source, *, streaming: bool) -> Iterator[Found]:
    """Rows of a set on the hub, at the pinned revision and from the folder of the domain.

    One process reads them as they stream in. Several read them in the cache of `datasets`: if they are not there yet,
    the first to ask fetches them, while it lets the others wait.
    """
    entry, revision = entry_of(source), commit_of(source)
    folder = entry.get("folders", {}).get(source.kind)
    require_inside([folder] if folder else [], f"folders of {source.name} in data/sources.yaml")
    import datasets

    number = 0
    try:
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(
            source.name,
            entry.get("config"),
            data_dir=folder,
            split=source.split,
            revision=revision,
            streaming=streaming,
            verification_mode="no_checks",  # the commit says which rows; sizes are of the whole set, not of a folder
        )
        for number, row in enumerate(rows, start=1):
            yield Raw(f"{source.name}/{source.split}:{number}", row), None
    # Offline, not found and not allowed are OSErrors, a split that doesn't exist a ValueError, a script a RuntimeError.
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetBuildError) as error:
        full = disk_error(error, Path.home()) if isinstance(error, OSError) else None
        raise full or MissingError(
            f"data set {source.name!r}, split {source.split!r}, can't be had: {_first_line(error)}",
            where=f"the Hugging Face hub, revision {revision}, after {number:,} rows",
            hints=["fetch it on a machine with a network and set `path` to its folder", "or name another set"],
        ) from error


@cache
def _known_sources() -> dict[str, dict[str, Any]]:
    import yaml

    # In a checkout the file stands in data/ at the top; in an installed wheel, beside this module.
    beside = Path(__file__).with_name("sources.yaml")
    path = beside if beside.exists() else Path(__file__).parents[2] / "data" / "sources.yaml"
    known: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return known


def _short(where: str) -> str:
    return where.rsplit("/", 1)[-1]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
