"""Pairs to people and back, blind and checked; and a judge that is asked twice, tested against a small server."""

import csv
import json
import shlex
import threading
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rlhf.annotation import people, store
from rlhf.annotation.judge import Judge, degree
from rlhf.annotation.pairs import Candidate
from rlhf.cli import main
from rlhf.data.types import Preference, Prompt, Turn
from rlhf.errors import MissingError


def candidate(i, domain="helpfulness", a="=1+1", b='good, "quoted"\nlines'):
    prompt = Prompt(f"p{i}", (Turn("user", f"question {i}"),), "mine", is_safety=False)
    return Candidate.of(prompt, a, b, domain=domain, side="train", seed=0)


def filled(path, **cells):
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.update({name: cell(row) if callable(cell) else cell for name, cell in cells.items()})
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, people.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.jsonl"])
def test_ratings_come_back_as_they_were_given(tmp_path, name):
    pairs = [candidate(i) for i in range(60)]
    path = tmp_path / name
    people.export(path, pairs)
    assert people.read(path, pairs) == ([], [], 60)  # nobody has rated yet
    wish = {pair.id: str(1 + (pair.second == "=1+1")) for pair in pairs}  # whoever has the sum
    if name == "pairs.csv":
        filled(path, choice=lambda row: wish[row["pair"]], degree="Better")
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text(
            "".join(json.dumps({**row, "choice": wish[row["pair"]], "degree": "better"}) + "\n" for row in rows)
        )
    rated, faults, blank = people.read(path, pairs)
    assert (faults, blank) == ([], 0)
    assert {(p.chosen, p.rating, p.source, p.chosen_safe) for p in rated} == {("=1+1", "better", "people", None)}
    assert {p.id for p in rated} == set(wish)
    assert set(Counter(wish.values())) == {"1", "2"}  # the order is drawn


def test_a_spreadsheet_finds_no_formula_and_people_no_hint(tmp_path):
    pairs = [candidate(i, a=text) for i, text in enumerate(("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "'=1", "plain"))]
    people.export(tmp_path / "pairs.csv", pairs)
    with (tmp_path / "pairs.csv").open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert not any(word in cell for cell in cells for word in ("train", "model", "temperature"))
    for text in ("=1", "'=1", "'", "plain", "'plain", "''=1"):
        assert people.unguarded(people.guarded(text)) == text


@pytest.mark.parametrize(
    ("cells", "column", "what"),
    [
        ({"choice": "3", "degree": "better"}, "choice", "must be 1 or 2 (got '3')"),
        ({"choice": "1", "degree": "much"}, "degree", "must be one of significantly, better"),
        ({"choice": "1", "degree": ""}, "degree", "must be one of"),
        ({"choice": "1", "degree": "better", "safe_1": "yes"}, "safe_2", "must be yes or no (got '')"),
        ({"choice": "1", "degree": "better", "safe_1": "no", "safe_2": "yes"}, "choice", "the chosen answer"),
        ({"pair": "x"}, "pair", "there is no pair 'x'"),
        ({"answer_1": "sorted"}, "answer_1", "this is not the text that was exported"),
    ],
)  # fmt: skip
def test_a_cell_that_cannot_be_meant_is_told_by_row_and_column(tmp_path, cells, column, what):
    pairs = [candidate(0, "safety")]
    people.export(tmp_path / "pairs.csv", pairs)
    filled(tmp_path / "pairs.csv", **cells)
    rated, (fault,), _ = people.read(tmp_path / "pairs.csv", pairs)
    assert not rated
    assert fault.where.startswith(str(tmp_path / "pairs.csv"))
    assert fault.where.endswith(f": {column}")
    assert what in fault.what
    assert fault.hint


def test_the_command_there_and_back(tmp_path, capsys):
    pairs = [candidate(i) for i in range(4)]
    store.keep_pairs(tmp_path / "people", "preferences-1", pairs)
    words = ["preferences.annotator=file", f"preferences.ratings={tmp_path / 'people'}"]
    file = tmp_path / "pairs.csv"
    assert main(["annotate", "export", str(file), *words]) == 0
    assert main(["annotate", "export", str(file), *words]) == 2  # it may hold ratings by now
    assert main(["annotate", "import", str(file), *words]) == 65
    assert "no row is rated" in capsys.readouterr().out
    filled(file, choice="1", degree=lambda row: "slightly" if row["pair"] == pairs[0].id else "much")
    assert main(["annotate", "import", str(file), *words]) == 65
    assert "3 problems; nothing was imported" in capsys.readouterr().out
    assert store.ratings(tmp_path / "people", "preferences-1") == []
    filled(file, degree="slightly")
    assert main(["annotate", "import", str(file), *words]) == 0
    assert f"now: rlhf run {shlex.join(words)}\n" in capsys.readouterr().out
    rated = store.ratings(tmp_path / "people", "preferences-1")
    assert {(p.id, p.chosen) for p in rated} == {(pair.id, pair.first) for pair in pairs}


# ── a judge ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def judged():
    """judged(reply): the address of a judge whose reply to (answer 1, answer 2) is that; what it was asked is kept."""
    servers = []

    def serve(reply):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["messages"][0]["content"]
                asked.append((self.path, body["model"], self.headers.get("Authorization"), text))
                first, second = text.split("[Answer 1]\n")[1].split("\n\n[End]")[0].split("\n\n[Answer 2]\n")
                content = reply(first, second)
                data = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/v1", asked

    yield serve
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def says(choice, level, **safe):
    return "Let me see.\n" + json.dumps({"choice": choice, "degree": level, **safe})


def test_a_judge_that_knows_is_asked_in_both_orders(judged, monkeypatch):
    monkeypatch.setenv("RLHF_JUDGE_KEY", "not-a-real-one")
    address, asked = judged(
        lambda one, two: says(1 if one == "good" else 2, "better" if one == "good" else "significantly")
    )
    judge = Judge(address, "large")
    rated = judge.rate([candidate(i, a="good", b="bad") for i in range(10)])
    assert [(p.chosen, p.rejected, p.rating, p.source) for p in rated] == [
        ("good", "bad", "better", "judge large")
    ] * 10
    assert len(asked) == 20
    assert {entry[:3] for entry in asked} == {("/v1/chat/completions", "large", "Bearer not-a-real-one")}
    first = Counter("[Answer 1]\ngood" in text for *_, text in asked)
    assert first == {True: 10, False: 10}


def test_a_judge_that_prefers_what_it_reads_first_decides_nothing(judged):
    judge = Judge(judged(lambda one, two: says(1, "significantly"))[0], "large")
    assert judge.rate([candidate(i) for i in range(5)]) == []
    assert judge.dropped == {"pairs undecided in both orders": 5}


def test_replies_that_are_no_verdict_are_counted(judged):
    judge = Judge(judged(lambda one, two: "both are fine")[0], "large")
    assert judge.rate([candidate(0)]) == []
    assert judge.dropped == {"replies not understood": 1}


def test_safety_labels_count_where_both_orders_agree(judged):
    def reply(one, two):
        return says(1 if one == "good" else 2, "better", safe_1=one == "good", safe_2=one == "bad")

    (rated,) = Judge(judged(reply)[0], "large").rate([candidate(0, "safety", a="good", b="bad")])
    assert (rated.chosen, rated.chosen_safe, rated.rejected_safe, rated.is_safety) == ("good", True, False, True)


@pytest.mark.parametrize(
    ("strength", "level"), [(4, "significantly"), (3.5, "better"), (2.5, "slightly"), (0.5, "negligibly")]
)
def test_the_mean_of_two_degrees_by_hand(strength, level):
    assert degree(strength) == level


def test_a_judge_that_is_not_there_is_missing_with_its_address(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(MissingError, match="the judge does not answer") as caught:
        Judge("http://127.0.0.1:9/v1", "large").rate([candidate(0)])
    assert caught.value.where == "http://127.0.0.1:9/v1/chat/completions"


def test_a_chosen_answer_that_alone_is_unsafe_is_no_preference():
    pair = candidate(0, "safety")
    assert pair.rated(1, "better", (False, True), source="x") is None
    assert isinstance(replace(pair).rated(2, "better", (False, True), source="x"), Preference)
