"""Every way in which a file of pairs can be malformed: the same words from `rlhf check data` and from the stage."""

import gzip
import json

import pytest

from rlhf.cli import main
from rlhf.data import feed
from rlhf.errors import DataError
from rlhf.schema import Source


def good(i, **more):
    return {"prompt": f"question {i}", "chosen": f"good {i}", "rejected": "bad", **more}


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


FEW = [good(i) for i in range(3)]
TURNS = [{"role": "user", "content": "q"}, {"role": "user", "content": "r"}]

# name -> the bytes of the file, the place of the first problem, and its words.
MALFORMED = {
    "cut off": (lines(*FEW) + b'{"prompt": "q", "cho', "4:17", "the last line is cut off"),
    "broken line": (lines(FEW[0], '{"prompt": "q" "chosen": "a"}', FEW[1]), "2:16", "not a line of JSON: Expec"),
    "empty": (b"", "1:1", "it holds no rows"),
    "blank": (b"\n \n\n", "1:1", "it holds no rows"),
    "latin-1": (lines(FEW[0]) + '{"prompt": "é"}\n'.encode("latin1"), "2:13", "not UTF-8: byte 0xe9"),
    "bom": (b"\xef\xbb\xbf" + lines(*FEW), "1:1", "it starts with a byte order mark"),
    "crlf": (lines(*FEW).replace(b"\n", b"\r\n"), "1", "lines end in CRLF, as on Windows"),
    "nul": (lines(FEW[0], '{"prompt": "a\0b"}'), "2:14", "a NUL byte"),
    "half a character": (lines(FEW[0], good(1, chosen="\ud83d")), "2:26", "text that isn't valid Unicode"),
    "nan": (lines(FEW[0], '{"prompt": "q", "score": NaN}'), "2:26", "NaN is no JSON value"),
    "key twice": (lines(FEW[0], '{"prompt": "q", "prompt": "r"}'), "2:17", "the key 'prompt' is given twice"),
    "wrong type in row 60": (lines(*map(good, range(59)), good(59, rejected=7)), "60:48", "field 'rejected' must be"),
    "missing column": (lines(*FEW, {"prompt": "q", "chosen": "a"}), "4:17", "a row needs chosen and rejected"),
    "misspelt column": (lines(*FEW, good(3, ratting="better")), "4:65", "unknown column 'ratting'"),
    "same replies": (lines(*FEW, good(3, rejected="good 3")), "4:46", "chosen and rejected are the same"),
    "empty reply": (lines(*FEW, good(3, chosen="  ")), "4:26", "an empty message"),
    "ids twice": (lines(good(0, id="a"), good(1, id="a")), "2", "an earlier row has the same id"),
    "prompt trained on and tested": (lines(*FEW), "2", "its prompt is tested"),
    "swapped": (lines(*FEW, good(1, chosen="bad", rejected="good 1")), "4", "an earlier row prefers the other answer"),
    "roles": (lines(*FEW, good(3, prompt=TURNS)), "4:2", "roles don't alternate"),
    "content is no text": (lines(*FEW, good(3, prompt=[{"role": "user", "content": 3}])), "4:2", "prompt[1] must be"),
    "10 MB line": (lines(FEW[0]) + lines(good(1, chosen="x" * 10**7)) + lines(FEW[2]), "2:1", "a line longer than"),
    "gzip bomb": (None, "68:1", "unpacks to more than 200 times its size"),
    "folder": (None, "", "it is a folder, not a file"),
}  # fmt: skip


@pytest.fixture
def malformed(tmp_path):
    """malformed(name): the sources that a recipe would name."""

    def make(name):
        path, data = tmp_path / "pairs.jsonl", MALFORMED[name][0]
        if name == "folder":
            path.mkdir()
        elif name == "gzip bomb":
            path = tmp_path / "pairs.jsonl.gz"
            rows = (json.dumps(good(i, chosen="x" * 10**6)) + "\n" for i in range(90))
            path.write_bytes(gzip.compress("".join(rows).encode(), 9))
        else:
            path.write_bytes(data)
        given = [{"name": "mine", "path": str(path)}]
        if name == "prompt trained on and tested":
            tests = tmp_path / "tests.jsonl"
            tests.write_bytes(lines(good(1, chosen="another", rejected="one"), good(7)))
            given = [{**given[0], "use": "train"}, {"name": "tests", "path": str(tests), "use": "test"}]
        return path, given

    return make


def check(given, runs):
    return main(["check", "data", "stage=reward", "config=hh", f"reward.data={json.dumps(given)}", f"runs_dir={runs}"])


def place(path, where):
    return f"{path}:{where}" if where else str(path)


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_told_by_place_words_and_fix(name, malformed, capsys, tmp_path):
    path, given = malformed(name)
    _, where, words = MALFORMED[name]
    with pytest.raises(DataError) as caught:
        feed.preferences([Source(**source) for source in given], test_share=0.1, say=[].append)
    assert caught.value.exit_code == 65
    if name not in ("empty", "blank"):  # the stage has no first line to name
        assert caught.value.where.startswith(place(path, where))
        assert words in caught.value.what
    assert caught.value.hints

    code = check(given, tmp_path)
    said = capsys.readouterr()
    assert (code, said.err) == (65, "")
    first = said.out.partition("\n\n")[2].splitlines()
    assert first[0].startswith(place(path, where))
    assert words in first[1]
    assert first[2].startswith("  fix: ")


def test_at_least_twenty_problems_are_told_in_one_pass(tmp_path, capsys):
    bad = [good(i, chosen=" ") if i % 2 else good(i, rejected=7) for i in range(120)]
    (tmp_path / "pairs.jsonl").write_bytes(lines(*bad))
    given = [{"name": "mine", "path": str(tmp_path / "pairs.jsonl")}]
    assert check(given, tmp_path) == 65
    out = capsys.readouterr().out
    assert out.count("fix:") == 50
    assert "of 120 problems the first 50 are shown" in out
    assert "        60  an empty message" in out
    assert out.endswith("\n120 problems\n")


def test_what_the_recipe_leaves_out_is_a_number_and_no_problem(tmp_path, capsys):
    rows = [*FEW, good(3, chosen=" "), FEW[1], good(1, chosen="bad", rejected="good 1")]
    (tmp_path / "pairs.jsonl").write_bytes(lines(*rows))
    given = [{"name": "mine", "path": str(tmp_path / "pairs.jsonl"), "on_bad_row": "drop"}]
    assert check(given, tmp_path) == 0
    out = capsys.readouterr().out
    assert "mine: 2 of 6 rows used; 2 dropped: an earlier row prefers the other answer of the same two" in out
    assert "1 dropped: an empty message; 1 dropped: the same pair as an earlier row" in out
    said = []
    feed.preferences([Source(**source) for source in given], test_share=0.1, say=said.append)
    assert said[0] in out  # what the stage says of the same rows
    assert out.endswith("\nno problems\n")
