"""Records come back from JSON lines as they went, and a bad row is told by file and line."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data.types import RATINGS, Dialogue, Preference, Prompt, Turn, read_jsonl, write_jsonl
from rlhf.errors import DataError

PROMPT = (Turn("system", "s"), Turn("user", "q"))
PAIR = Preference("p", PROMPT, "a", "b", "here", "slightly", True, None, True, "border")
# Line separators of Unicode, half a surrogate pair and control characters: what JSON lines trip over.
TEXT = st.text(st.characters(), max_size=20) | st.sampled_from(["\u2028\x85\x0c", "\ud800", "a\r\nb", "\x00"])


@given(st.lists(st.tuples(TEXT, TEXT), max_size=5), st.sampled_from(["rows.jsonl", "rows.jsonl.gz"]))
@settings(deadline=None, max_examples=60)
def test_dialogues_come_back(tmp_path_factory, texts, name):
    path = tmp_path_factory.mktemp("types") / name
    rows = [Dialogue(str(i), (Turn("user", q), Turn("assistant", a)), q) for i, (q, a) in enumerate(texts)]
    write_jsonl(path, rows)
    assert read_jsonl(path, Dialogue) == rows


@pytest.mark.parametrize("row", [PAIR, Prompt("i", PROMPT, "here", True, "unsafe"), Prompt("i", PROMPT[1:], "", False)])
def test_records_come_back(tmp_path, row):
    write_jsonl(tmp_path / "rows.jsonl", [row])
    assert read_jsonl(tmp_path / "rows.jsonl", type(row)) == [row]


def test_the_columns_are_the_contract():
    assert PAIR.to_json() == {
        "id": "p", "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
        "chosen": "a", "rejected": "b", "source": "here", "rating": "slightly",
        "chosen_safe": True, "rejected_safe": None, "is_safety": True, "kind": "border",
    }  # fmt: skip
    assert RATINGS == ("significantly", "better", "slightly", "negligibly")


def test_equal_rows_give_equal_bytes(tmp_path):
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_jsonl(tmp_path / name, [PAIR])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).endswith(b"}\n")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rating": "great"}, "rating must be one of significantly, better, slightly, negligibly"),
        ({"prompt": "q"}, "field 'prompt' must be a list"),
        ({"prompt": [{"role": "bot", "content": "q"}]}, r"prompt\[1\] must be"),
        ({"prompt": [{"role": "assistant", "content": "q"}]}, "must be the user's"),
        ({"chosen": None}, "field 'chosen' must be text"),
        ({"is_safety": 1}, "field 'is_safety' must be true or false"),
        ({"chosen_safe": "yes"}, "field 'chosen_safe' must be true or false"),
        ({"chosen_safe": False, "rejected_safe": True}, "chosen completion is marked unsafe and the rejected one safe"),
    ],
)
def test_a_bad_row_is_told_by_file_and_line(tmp_path, change, complaint):
    path = tmp_path / "pairs.jsonl"
    good = json.dumps(PAIR.to_json())
    path.write_text(f"{good}\n\n{json.dumps({**PAIR.to_json(), **change})}\n")
    with pytest.raises(DataError, match=complaint) as caught:
        read_jsonl(path, Preference)
    assert caught.value.where.startswith(f"{path}:3")


@pytest.mark.parametrize(
    ("data", "line"),
    [(b'{"a": 1\n', "1:8"), (b"[1]\n", "1:1"), (b'{"text": "\xff"}\n', "1:11"), (b"\n\nnonsense", "3:1")],
)
def test_what_is_no_json_is_told_by_file_and_line(tmp_path, data, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_jsonl(path, Dialogue)
    assert caught.value.where == f"{path}:{line}"


def test_a_cut_gzip_is_an_error_not_fewer_rows(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    write_jsonl(path, [PAIR] * 50)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="cannot be read"):
        read_jsonl(path, Preference)
