"""What stages are fed, from the micro-world and from files, and that training and evaluation never share a prompt."""

import json

import pytest

from rlhf.data import feed
from rlhf.data.types import Dialogue, Prompt, Turn, write_jsonl
from rlhf.errors import ConfigError
from rlhf.microworld.oracle import read_prompt
from rlhf.schema import MicroworldConfig, Source

MICROWORLD = Source(name="microworld")
MIX = {"safe": 0.5, "unsafe": 0.5}
WORLD = MicroworldConfig()


def unsaid(line):
    raise AssertionError(f"nothing to say, but it said {line!r}")


@pytest.fixture
def asked(tmp_path):
    """A file of 100 prompts."""
    rows = [{"prompt": f"question {i}"} for i in range(100)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(name="asked", path=str(tmp_path / "asked.jsonl"))


def prompts(given, count, *, held_out, seed=0, say=unsaid):
    options = {"stage": "ppo", "world": WORLD, "mix": MIX, "held_out": held_out}
    return feed.prompts(given, count, seed=seed, say=say, **options)


def texts(rows):
    return {row.turns[-1].content for row in rows}


def test_prompts_of_a_file_are_split_once_for_all(asked):
    said = []
    train = [prompts([asked], 1000, held_out=False, seed=seed, say=said.append) for seed in range(3)]
    test = [prompts([asked], 1000, held_out=True, seed=seed, say=said.append) for seed in range(3)]
    assert [len(rows) for rows in (*train, *test)] == [90] * 3 + [10] * 3
    assert texts(train[0]) == texts(train[1]) == texts(train[2])
    assert texts(test[0]) == texts(test[1]) == texts(test[2])
    assert texts(train[0]) | texts(test[0]) == {f"question {i}" for i in range(100)}
    assert train[0] != train[1]  # in another order, so that the first few differ


def test_a_file_is_read_once_however_often_it_is_asked_for(asked):
    said = []
    say = said.append
    for seed in range(5):
        assert len(prompts([asked], 8, held_out=False, seed=seed, say=say)) == 8
    assert said == ["asked: 100 of 100 rows used"]


def test_prompts_of_the_micro_world_keep_their_side():
    for held_out in (False, True):
        rows = prompts([MICROWORLD], 300, held_out=held_out)
        asks = [read_prompt(row.turns)[0] for row in rows]
        assert len(rows) == 300
        assert {ask.held_out for ask in asks if ask.form == "how"} == {held_out}
        assert {row.kind for row in rows} == set(MIX)


def test_sources_are_mixed(asked):
    rows = prompts([asked, MICROWORLD], 100, held_out=False, say=lambda line: None)
    assert {row.source for row in rows} == {"asked", "microworld"}
    assert rows == prompts([asked, MICROWORLD], 100, held_out=False, say=lambda line: None)


def test_demonstrations_and_texts_of_both_kinds(tmp_path):
    write_jsonl(tmp_path / "shown.jsonl", [Dialogue("d", (Turn("user", "q"), Turn("assistant", "a")), "people")])
    (tmp_path / "book.txt").write_text("once upon a time\n")
    shown, book = (Source(name="mine", path=str(tmp_path / name)) for name in ("shown.jsonl", "book.txt"))
    few = Source(name="microworld", limit=7)
    rows = feed.demonstrations([few, shown], seed=0, stage="sft", say=lambda line: None)
    assert [len(row.turns) > 0 for row in rows] == [True] * 8
    assert rows[-1].turns == (Turn("user", "q"), Turn("assistant", "a"))
    words = feed.texts([MICROWORLD, book], words=200, seed=0, stage="base", say=lambda line: None)
    assert words[-1] == "once upon a time"
    assert 200 <= sum(len(text.split()) for text in words[:-1]) < 200 + 4 * 600


def test_pairs_are_split_by_prompt_and_sorted_by_domain(tmp_path):
    for name in ("kind", "harmless"):
        rows = [{"prompt": f"{name} {i % 20}", "chosen": "good", "rejected": "bad"} for i in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [
        Source(name="kind", path=str(tmp_path / "kind.jsonl")),
        Source(name="harmless", path=str(tmp_path / "harmless.jsonl"), kind="safety"),
    ]
    said = []
    found = feed.preferences(given, test_share=0.25, seed=0, say=said.append)
    for domain, name in (("helpfulness", "kind"), ("safety", "harmless")):
        sides = [{row.prompt[0].content for row in side} for side in (found[domain].train, found[domain].test)]
        assert sides[0].isdisjoint(sides[1])
        assert (len(found[domain].train), len(found[domain].test)) == (30, 10)
        assert f"{name}: 30 pairs to train on, 10 held out by prompt" in said


def test_conversations_come_from_the_micro_world_alone(asked):
    options = {"min_turns": 3, "max_turns": 5, "seed": 0, "held_out": True, "stage": "gatt"}
    rows = feed.conversations([MICROWORLD], 20, **options)
    assert len(rows) == 20
    assert all(row.instruction and 3 <= len(row.user_turns) <= 5 for row in rows)
    assert len({row.id for row in rows}) == 20
    with pytest.raises(ConfigError, match=r"gatt\.data names asked, which has no conversations"):
        feed.conversations([asked], 20, **options)


def test_a_stage_without_a_source_says_what_it_needs():
    with pytest.raises(ConfigError, match=r"ppo\.data is empty"):
        prompts([], 5, held_out=False)


def test_rows_of_an_earlier_stage(tmp_path):
    row = Prompt("p", (Turn("user", "q"),), "people", is_safety=False)
    write_jsonl(tmp_path / "rows.jsonl", [row])
    assert feed.stored(tmp_path / "rows.jsonl", Prompt) == [row]
    assert feed.stored(tmp_path / "none.jsonl", Prompt) == []
