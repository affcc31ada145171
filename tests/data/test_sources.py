"""Rows of every shape people publish become the same records, and nothing is left out without a word.

The rows are made up; their shapes are those of the published sets.
"""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.data import sources
from rlhf.data.sources import load_dialogues, load_preferences, load_prompts, load_texts
from rlhf.data.types import Preference, Prompt, Turn
from rlhf.errors import ConfigError, DataError, MissingError
from rlhf.schema import Source

HH = {
    "chosen": "\n\nHuman: hello\n\nAssistant: hi, how are you?\n\nHuman: fine\n\nAssistant: good.\n\nAnd me too.",
    "rejected": "\n\nHuman: hello\n\nAssistant: hi, how are you?\n\nHuman: fine\n\nAssistant: so what",
}
HH_TURNS = (Turn("user", "hello"), Turn("assistant", "hi, how are you?"), Turn("user", "fine"))
QUESTION, GOOD, BAD = (
    {"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "good"), ("assistant", "bad"))
)


def write(path, rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def source(path, **settings):
    return Source(name="made-up", path=str(path), **settings)


def no_word(line):
    """For tests that ask nothing about what is said."""


# ── preferences ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_hh_texts_are_cut_into_turns(tmp_path):
    (row,) = load_preferences(source(write(tmp_path / "hh.jsonl.gz", [HH]), kind="safety"), say=no_word)
    assert row == Preference(
        id="made-up:hh.jsonl.gz:1", prompt=HH_TURNS, chosen="good.\n\nAnd me too.", rejected="so what",
        source="made-up", rating=None, chosen_safe=None, rejected_safe=None, is_safety=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [QUESTION], "chosen": "good", "rejected": "bad"},
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [QUESTION], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
        {"prompt": "q", "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD], "score_chosen": 8.0},
        {"prompt": "q", "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
    ],
)
def test_one_pair_in_every_shape(tmp_path, row):
    (pair,) = load_preferences(source(write(tmp_path / "pairs.jsonl", [row])), say=no_word)
    assert (pair.prompt, pair.chosen, pair.rejected) == ((Turn("user", "q"),), "good", "bad")
    assert (pair.is_safety, pair.rating) == (False, None)
    (prompt,) = load_prompts(source(tmp_path / "pairs.jsonl"), say=no_word)
    assert prompt.turns == pair.prompt


@pytest.mark.parametrize(
    ("grade", "rating"),
    [
        ({"degree": "significantly-better"}, "significantly"),
        ({"degree": "better"}, "better"),
        ({"degree": "slightly-better"}, "slightly"),
        ({"degree": "unsure"}, "negligibly"),
        ({"rating": "slightly"}, "slightly"),
        ({}, None),
    ],
)
def test_degrees_become_ratings(tmp_path, grade, rating):
    row = {"id": 7, "source": "there", "prompt": "q", "chosen": "a", "rejected": "b", "is_safety": True, **grade}
    (pair,) = load_preferences(source(write(tmp_path / "pairs.jsonl", [row])), say=no_word)
    assert (pair.rating, pair.id, pair.source, pair.is_safety) == (rating, "7", "there", True)


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
BAD_ROWS = [
    (
        {**HH, "rejected": HH["rejected"].replace("hello", "hallo")},
        "the dialogues differ elsewhere than in the last reply",
    ),
    ({**HH, "rejected": HH["rejected"] + "\n\nHuman: x\n\nAssistant: y"}, "differ elsewhere"),
    ({k: v.replace("hi, how", "hm\n\nAssistant: how") for k, v in HH.items()}, "roles don't alternate"),
    ({k: v + "\n\nHuman: and?" for k, v in HH.items()}, "differ elsewhere"),
    ({**PAIR, "rejected": " a "}, "chosen and rejected are the same"),
    ({**PAIR, "chosen": " "}, "an empty message"),
    ({**PAIR, "prompt": "say </s> now"}, "a message holds </s>"),
    ({**PAIR, "rejected": "b [INST] c"}, "a message holds \\[INST\\]"),
    ({**PAIR, "chosen": "\ud800"}, "valid Unicode"),
    ({**PAIR, "chosen_safe": False, "rejected_safe": True}, "chosen is marked unsafe and rejected safe"),
    ({"chosen": [GOOD], "rejected": [BAD]}, "no prompt before the reply"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS)
def test_a_row_that_cannot_be_used_stops_or_is_counted(tmp_path, bad, reason):
    path = write(tmp_path / "pairs.jsonl", [HH, bad, HH])
    with pytest.raises(DataError, match=reason) as caught:
        load_preferences(source(path), say=no_word)
    assert re.fullmatch(rf"{re.escape(str(path))}:2:\d+", caught.value.where)
    said = []
    assert len(load_preferences(source(path, on_bad_row="drop"), say=said.append)) == 2
    (line,) = said
    assert line.startswith("made-up: 2 of 3 rows used; 1 dropped: ")


def test_rows_dropped_are_counted_by_reason(tmp_path, capsys):
    path = write(tmp_path / "pairs.jsonl", [HH, *[row for row, _ in BAD_ROWS[:2]], BAD_ROWS[4][0]])
    load_preferences(source(path, on_bad_row="drop"))
    expected = (
        "1 dropped: chosen and rejected are the same; 2 dropped: the dialogues differ elsewhere than in the last reply"
    )
    assert capsys.readouterr().out == f"made-up: 1 of 4 rows used; {expected}\n"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not a line of JSON"),
        ('{"chosen": "a"}', r"needs chosen and rejected \(got chosen\)"),
        ('{"chosen": "a", "rejected": "b"}', "must start with"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "degree": "tie"}', "degree must be one of .*got 'tie'"),
        (
            '{"prompt": "q", "chosen": "a", "rejected": 3}',
            "field 'rejected' must be text, as the other reply is",
        ),
    ],
)
def test_a_malformed_row_stops_whatever_the_policy(tmp_path, line, complaint):
    path = write(tmp_path / "pairs.jsonl", [HH, line])
    with pytest.raises(DataError, match=complaint) as caught:
        load_preferences(source(path, on_bad_row="drop"), say=no_word)
    assert re.fullmatch(rf"{re.escape(str(path))}:2:\d+", caught.value.where)


# ── demonstrations, prompts, texts ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [QUESTION, GOOD]},
        {"turns": [QUESTION, GOOD]},
        {"prompt": "q", "completion": "good"},
        {"prompt": [QUESTION], "completion": [GOOD]},
    ],
)
def test_one_demonstration_in_every_shape(tmp_path, row):
    path = write(tmp_path / "rows.jsonl", [row])
    (dialogue,) = load_dialogues(source(path), say=no_word)
    assert dialogue.turns == (Turn("user", "q"), Turn("assistant", "good"))
    (prompt,) = load_prompts(source(path, kind="safety"), say=no_word)
    assert prompt == Prompt("made-up:rows.jsonl:1", (Turn("user", "q"),), "made-up", is_safety=True)


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"conversations": [{"from": "human", "value": "q"}]}, "rename conversations to messages, from to role"),
        ({"instruction": "do", "input": "", "output": "done"}, "rename instruction to prompt"),
        ({"question": "q", "answer": "a"}, "shapes: data/README.md"),
    ],
)
@pytest.mark.parametrize("load", [load_dialogues, load_prompts])
def test_dialogues_in_shapes_of_others_are_told_what_to_rename(tmp_path, load, row, hint):
    with pytest.raises(DataError, match="a row needs") as caught:
        load(source(write(tmp_path / "rows.jsonl", [row])), say=no_word)
    assert hint in caught.value.hints[0]


@pytest.mark.parametrize(("prompt", "completion"), [(7, "a"), ("q", 7)])
def test_where_text_would_do_the_complaint_says_so(tmp_path, prompt, completion):
    path = write(tmp_path / "rows.jsonl", [{"prompt": prompt, "completion": completion}])
    with pytest.raises(DataError, match=r"must be text or a list of \{role, content\} \(got 7\)"):
        load_dialogues(source(path), say=no_word)


def test_a_demonstration_without_an_answer_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"messages": [QUESTION]}])
    with pytest.raises(DataError, match="the last turn is not the assistant's"):
        load_dialogues(source(path), say=no_word)


def test_several_questions_without_answers_are_no_prompt(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"id": "a", "turns": ["q"]}, {"id": "b", "turns": ["q", "and then?"]}])
    said = []
    (prompt,) = load_prompts(source(path, on_bad_row="drop"), say=said.append)
    assert prompt.id == "a"
    assert "1 dropped: several user turns and no answers between them" in said[0]


def test_texts_are_a_field_or_a_line(tmp_path):
    write(tmp_path / "a.jsonl", [{"title": "x", "text": "one\n\ntwo"}])
    write(tmp_path / "b.txt.gz", [" one ", "", "two\u2028still two"])
    assert load_texts(source(tmp_path / "a.jsonl"), say=no_word) == ["one\n\ntwo"]
    assert load_texts(source(tmp_path / "b.txt.gz"), say=no_word) == [" one ", "two\u2028still two"]


# ── where it is read from ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_gives_the_files_named_after_the_split_in_order(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": ["two", "three"]})
    pyarrow.parquet.write_table(table, tmp_path / "train-00001-of-00002.parquet")
    write(tmp_path / "train-00000-of-00002.jsonl", [{"text": "one"}])
    write(tmp_path / "test.jsonl", [{"text": "held out"}])
    write(tmp_path / "training.jsonl", [{"text": "another"}])
    assert load_texts(source(tmp_path), say=no_word) == ["one", "two", "three"]
    assert load_texts(source(tmp_path, split="test"), say=no_word) == ["held out"]
    with pytest.raises(MissingError, match=r"no file of split 'dev' \(it holds test.jsonl"):
        load_texts(source(tmp_path, split="dev"), say=no_word)


def test_a_limit_counts_rows_that_can_be_used(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"text": text} for text in ("a", " ", "b", "c")])
    said = []
    assert load_texts(source(path, limit=2, on_bad_row="drop"), say=said.append) == ["a", "b"]
    assert said == ["made-up: 2 of 3 rows used; 1 dropped: an empty text"]


@pytest.mark.parametrize(("rows", "why"), [([], "it holds no rows"), ([{"text": " "}], "no row of it can be used")])
def test_nothing_to_use_is_an_error(tmp_path, rows, why):
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=why):
        load_texts(source(path, on_bad_row="drop"), say=no_word)


def test_what_is_not_there_or_not_known_is_told(tmp_path):
    with pytest.raises(MissingError, match="there is no file or folder"):
        load_texts(source(tmp_path / "none.jsonl"), say=no_word)
    with pytest.raises(DataError, match=r"can't tell what rows\.csv holds"):
        load_texts(source(write(tmp_path / "rows.csv", ["text"])), say=no_word)
    write(tmp_path / "broken.parquet", ["not parquet"])
    with pytest.raises(DataError, match="cannot be read"):
        load_texts(source(tmp_path / "broken.parquet"), say=no_word)
    with pytest.raises(ConfigError, match="no data set 'Antropic/hh-rlhf'") as caught:
        load_preferences(Source(name="Antropic/hh-rlhf"), say=no_word)
    assert caught.value.hints[0] == "did you mean Anthropic/hh-rlhf?"


def test_the_hub_is_read_at_the_pinned_revision(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, config, **settings):
        assert config is None
        asked.append((name, settings))
        return [HH]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (row,) = load_preferences(Source(name="Anthropic/hh-rlhf", kind="safety", split="test"), say=no_word)
    assert row.id == "Anthropic/hh-rlhf:test:1"
    revision = sources.known_sources()["Anthropic/hh-rlhf"]["revision"]
    expected = {"data_dir": "harmless-base", "split": "test", "revision": revision, "streaming": True}
    expected["verification_mode"] = "no_checks"
    assert asked == [("Anthropic/hh-rlhf", expected)]
    load_preferences(Source(name="Anthropic/hh-rlhf", revision="0" * 40), say=no_word)  # the recipe has the last word
    assert asked[1][1]["revision"] == "0" * 40


def test_a_set_that_nobody_listed_is_read_in_a_plain_shape_at_a_commit(monkeypatch):
    import datasets

    message = [{"role": "user", "content": "how ?"}, {"role": "assistant", "content": "so"}]
    row = {"chosen": message, "rejected": [message[0], {**message[1], "content": "not so"}], "score": 3}
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, **more: asked.append((name, more)) or [row])
    given = Source(name="trl-lib/some-pairs", revision="a" * 40)
    (found,) = load_preferences(given, say=no_word)
    assert (found.chosen, found.rejected, found.source) == ("so", "not so", "trl-lib/some-pairs")
    assert [(name, more["data_dir"], more["revision"]) for name, more in asked] == [
        ("trl-lib/some-pairs", None, "a" * 40)
    ]
    for name in ("../here", "here", "a/b/c", "./pairs"):  # folders beside the run are `path`s
        with pytest.raises(ConfigError, match="no data set"):
            load_preferences(Source(name=name, revision="a" * 40), say=no_word)
    with pytest.raises(ConfigError, match="no data set"):
        load_preferences(Source(name="trl-lib/some-pairs"), say=no_word)


ASK = """
import os, sys, time
import datasets
from rlhf.data.sources import Source, load_preferences

real, prepare = datasets.load_dataset, datasets.DatasetBuilder._download_and_prepare
datasets.load_dataset = lambda name, config, data_dir, **more: real("folder", **more)
def slow(*given, **more):
    print("prepared", flush=True)
    time.sleep(0.5)
    prepare(*given, **more)
datasets.DatasetBuilder._download_and_prepare = slow
for rank in range(size := int(os.environ["WORLD_SIZE"])):
    if not os.fork():
        rows = load_preferences(Source(name="Anthropic/hh-rlhf"), say=lambda line: None)
        print([str(row) for row in rows], flush=True)
        os._exit(0)
sys.exit(any(os.wait()[1] for _ in range(size)))
"""


def test_several_processes_of_a_machine_fetch_a_set_once(tmp_path):
    """The oracle is what one process finds that fetches nothing, but reads the rows as they come."""
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train.jsonl", [{**HH, "chosen": HH["chosen"] + f" {i}"} for i in range(5)])
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    said = []
    for size in ("1", "2"):
        environment["WORLD_SIZE"] = size
        command = [sys.executable, "-c", ASK]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        said.append(sorted(done.stdout.splitlines()))
    (rows,), together = said
    assert rows.count("Preference(") == 5
    assert together == [rows, rows, "prepared"]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no network"),
        FileNotFoundError("gone"),
        ValueError("Unknown split"),
        RuntimeError("Dataset scripts are no longer supported, but found webgpt_comparisons.py"),
    ],
)
def test_a_hub_out_of_reach_names_the_set_and_the_way_out(monkeypatch, error):
    import datasets

    def load_dataset(name, config, **settings):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(MissingError, match="Anthropic/hh-rlhf") as caught:
        load_preferences(Source(name="Anthropic/hh-rlhf"), say=no_word)
    assert caught.value.exit_code == 69
    assert any("`path`" in hint for hint in caught.value.hints)


@pytest.mark.parametrize("name", sources.known_sources())
def test_every_listed_set_is_pinned_and_licensed(name):
    entry = sources.known_sources()[name]
    if "revision" in entry:  # without one nothing is read from the hub, unless the recipe gives it
        assert len(entry["revision"]) == 40
        assert set(entry["revision"]) <= set("0123456789abcdef")
    assert entry["columns"]
    assert entry["licence"]
    assert set(entry["role"]) <= {"preferences", "prompts", "dialogues", "texts"}
