"""The folder where a recipe's pairs wait for people: `<step>.pairs.jsonl`, and `<step>.ratings.jsonl` once rated."""

from __future__ import annotations

from pathlib import Path

from rlhf.annotation.pairs import Candidate
from rlhf.data.types import Preference, read_jsonl, write_jsonl
from rlhf.errors import MissingError


def pairs_file(folder: Path, step: str) -> Path:
    """Where the pairs of a step are."""
    return folder / f"{step}.pairs.jsonl"


def ratings_file(folder: Path, step: str) -> Path:
    """Where their ratings are."""
    return folder / f"{step}.ratings.jsonl"


def newest(folder: Path, step: str | None) -> str:
    """The step asked for, or the newest that has pairs."""
    steps = sorted((path.name.removesuffix(".pairs.jsonl") for path in folder.glob("*.pairs.jsonl")), key=_round)
    if not steps or (step and step not in steps):
        wanted = f"{step} has" if step else "there are"
        raise MissingError(f"{wanted} no pairs to rate in {folder}", hints=["make them: rlhf run stage=preferences"])
    return step or steps[-1]


def pairs(folder: Path, step: str) -> list[Candidate]:
    """The pairs of a step."""
    return read_jsonl(pairs_file(folder, step), Candidate)


def keep_pairs(folder: Path, step: str, found: list[Candidate]) -> None:
    """Lay down pairs for people, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(pairs_file(folder, step), found)


def keep_ratings(folder: Path, step: str, found: list[Preference]) -> None:
    """Lay down ratings, whole or not at all; earlier ones are replaced."""
    _write(ratings_file(folder, step), found)


def ratings(folder: Path, step: str) -> list[Preference]:
    """The ratings of a step; none if nobody has rated yet."""
    path = ratings_file(folder, step)
    return read_jsonl(path, Preference) if path.exists() else []


def _write(path: Path, rows: list[Candidate] | list[Preference]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    write_jsonl(partial, rows)
    partial.replace(path)


def _round(step: str) -> tuple[int, str]:
    number = step.rpartition("-")[2]
    return (int(number) if number.isdigit() else 0), step
