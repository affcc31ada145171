"""The pool keeps every sample once, survives a crash mid-line, and gives the best of all rounds."""

from dataclasses import replace

import pytest

from rlhf.data.pool import PoolEntry, append, best, read
from rlhf.data.types import Turn
from rlhf.errors import DataError


def entry(prompt="p1", round=1, k=0, completion="yes", **changes):
    made = PoolEntry(
        prompt_id=prompt, prompt=(Turn("system", "s"), Turn("user", "q\u2028é")), is_safety=False,
        completion=completion, scores={"helpfulness": 0.25, "safety": -1.5}, round=round, policy="abc",
        temperature=1.2, seed=7, k=k, finished=True,
    )  # fmt: skip
    return replace(made, **changes)


def test_rounds_add_up_and_come_back_equal(tmp_path):
    path = tmp_path / "pool.jsonl"
    first, second = [entry(k=0), entry(k=1)], [entry(round=2, completion="a\nb\ud800")]
    assert append(path, first) == 2
    assert append(path, second) == 1
    assert read(path) == (first + second, 0)


def test_the_same_twice_is_once(tmp_path):
    path = tmp_path / "pool.jsonl"
    append(path, [entry(), entry()])
    before = path.read_bytes()
    assert append(path, [entry()]) == 0
    assert path.read_bytes() == before
    assert len(read(path).entries) == 1


def test_a_sample_is_never_overwritten(tmp_path):
    path = tmp_path / "pool.jsonl"
    append(path, [entry()])
    with pytest.raises(DataError, match="already has another completion"):
        append(path, [entry(completion="no")])


@pytest.mark.parametrize("kept", [1, 40, -2])
def test_a_torn_last_line_is_dropped_told_and_mended(tmp_path, kept):
    path = tmp_path / "pool.jsonl"
    append(path, [entry(k=0)])
    whole = path.read_bytes()
    append(path, [entry(k=1)])
    torn = path.read_bytes()[len(whole) : kept if kept < 0 else len(whole) + kept]
    path.write_bytes(whole + torn)
    assert read(path) == ([entry(k=0)], len(torn))
    assert append(path, [entry(k=1)]) == 1
    assert read(path) == ([entry(k=0), entry(k=1)], 0)


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "pool.jsonl"
    append(path, [entry(k=0)])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert read(path) == ([entry(k=0)], 0)
    append(path, [entry(k=1)])
    assert len(path.read_text().splitlines()) >= 2
    assert len(read(path).entries) == 2


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("nonsense", "not a pool entry"),
        ('{"prompt_id": 3}', "field 'prompt_id' must be text"),
        ("[1]", "not a pool entry"),
    ],
)
def test_a_bad_line_in_the_middle_is_told_by_number(tmp_path, line, complaint):
    path = tmp_path / "pool.jsonl"
    append(path, [entry(k=0)])
    path.write_text(path.read_text() + line + "\n" + path.read_text())
    with pytest.raises(DataError, match=complaint) as caught:
        read(path)
    assert caught.value.where == f"{path}:2"


def test_the_best_of_all_rounds_by_todays_scores():
    entries = [entry("p1", 1, 0), entry("p2", 1, 0), entry("p1", 1, 1), entry("p1", 2, 0), entry("p2", 2, 0)]
    chosen = best(entries, [0.1, 5.0, 0.9, 0.4, 5.0])
    assert [(e.prompt_id, e.round, e.k) for e in chosen] == [("p1", 1, 1), ("p2", 1, 0)]  # a tie keeps the earlier
    assert best([], []) == []


def test_scores_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        best([entry()], [])
    with pytest.raises(ValueError, match="not a number"):
        best([entry()], [float("nan")])


def test_a_torn_line_longer_than_what_follows_leaves_nothing_behind(tmp_path):
    path = tmp_path / "pool.jsonl"
    append(path, [entry(k=0)])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"prompt_id": "' + b"x" * 5000)
    assert append(path, []) == 0
    assert path.read_bytes() == whole
