"""A dashboard's copy has every line of the files once, through faults, kills and files that were put back."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf.tracking.histogram import edges, histogram
from rlhf.tracking.mirror import Mirror

FILES = ("metrics.jsonl", "samples.jsonl")


class Board:
    """A dashboard that outlives its process, as a server does; what it holds is looked at."""

    name = "board"

    def __init__(self, *, forgets: bool) -> None:
        self.forgets = forgets
        self.rows: dict[int, dict[str, Any]] = {}
        self.samples: list[Any] = []
        self.closed: list[bool] = []

    def open(self) -> tuple[int, int]:
        if self.forgets:
            self.rows.clear()
            self.samples.clear()
        return len(self.rows), len(self.samples)

    def log(self, row: Mapping[str, Any], *, number: int, samples: Sequence[Mapping[str, Any]]) -> None:
        assert number not in self.rows, "doubled"
        assert number == len(self.rows) + 1, "left out"
        self.rows[number] = dict(row)
        self.samples += samples

    def close(self, *, finished: bool) -> None:
        self.closed.append(finished)


def write(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


@pytest.mark.parametrize("forgets", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_killed_every_line_arrives_once_and_in_order(tmp_path: Path, seed: int, forgets: bool) -> None:
    """A step of 12 rows, with two samples beside every third; killed five times and put back to its last save."""
    rng, board, saved = random.Random(seed), Board(forgets=forgets), 0
    for life in range(6):
        for path in map(tmp_path.joinpath, FILES):
            path.write_bytes((tmp_path / f"saved-{path.name}").read_bytes() if saved else b"")
        mirror = Mirror(board, tmp_path, "sft", say=pytest.fail)
        for n in range(saved, 12 if life == 5 else rng.randint(saved, 12)):
            if n % 3 == 0:
                write(tmp_path / "samples.jsonl", {"n": n, "of": 1})
                write(tmp_path / "samples.jsonl", {"n": n, "of": 2})
            write(tmp_path / "metrics.jsonl", {"step": n, "loss": n / 8})
            mirror.follow({})
            if rng.random() < 0.2:
                saved = n + 1
                for name in FILES:
                    shutil.copy(tmp_path / name, tmp_path / f"saved-{name}")
    assert list(board.rows.values()) == [{"step": n, "loss": n / 8} for n in range(12)]
    assert board.samples == [{"n": n, "of": k} for n in range(0, 12, 3) for k in (1, 2)]


def test_files_put_back_in_the_middle_of_a_life_send_nothing_twice(tmp_path: Path) -> None:
    board = Board(forgets=True)
    mirror = Mirror(board, tmp_path, "reward-1", say=pytest.fail)
    for again in range(2):  # the first loop of a step logs what its save then puts back, and more
        for n in range(3 + 4 * again):
            write(tmp_path / "metrics.jsonl", {"step": n})
            mirror.follow({})
        if not again:
            (tmp_path / "metrics.jsonl").write_text("")
            mirror.rewind()
    assert [row["step"] for row in board.rows.values()] == list(range(7))


def test_a_fault_is_said_once_and_a_copy_that_failed_is_not_closed(tmp_path: Path) -> None:
    class Broken(Board):
        def log(self, row: Mapping[str, Any], *, number: int, samples: Sequence[Mapping[str, Any]]) -> None:
            raise OSError("gone\nfor good")

    said: list[str] = []
    board = Broken(forgets=True)
    mirror = Mirror(board, tmp_path, "sft", say=said.append)
    for n in range(3):
        write(tmp_path / "metrics.jsonl", {"step": n})
        mirror.follow({})
    mirror.close(finished=True)
    assert said == ["board is left out of sft (gone); the files have everything"]
    assert board.closed == []


def test_a_histogram_counts_every_value_in_its_bin() -> None:
    # 30 bins of width 0.1 from 0 to 3: 0.05 lies in the first, 1.25 in the 13th, 3 in the last.
    entry = histogram([0.0, 0.05, 1.25, 3.0])
    assert (entry["low"], entry["high"]) == (0.0, 3.0)
    assert {i: n for i, n in enumerate(entry["counts"]) if n} == {0: 2, 12: 1, 29: 1}
    assert edges(entry)[:2] == pytest.approx([0, 0.1])
    assert edges(entry)[-1] == pytest.approx(3.0)
    assert histogram([2.0, 2.0])["counts"][0] == 2
    # Two bins from 0 to 1, whatever the values: a value at an edge lies above it, the last end in the last bin.
    assert histogram([0.2, 0.5, 1.0], bins=2, ends=(0.0, 1.0)) == {"low": 0.0, "high": 1.0, "counts": [1, 2]}
