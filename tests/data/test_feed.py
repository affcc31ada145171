"""What stages are fed, from the micro-world and from files, and that training and evaluation never share a prompt."""

import json

import pytest

from rlhf.data import feed
from rlhf.data.instructions import Lists
from rlhf.data.types import Dialogue, Prompt, Turn, write_jsonl
from rlhf.errors import ConfigError, DataError
from rlhf.microworld.oracle import judge, read_prompt
from rlhf.schema import MicroworldConfig, Source

MICROWORLD = Source(name="microworld")
MIX = {"safe": 0.5, "unsafe": 0.5}
WORLD = MicroworldConfig()
SIDES = ("train", "validation", "test")


def unsaid(line):
    raise AssertionError(f"nothing to say, but it said {line!r}")


@pytest.fixture
def asked(tmp_path):
    """A file of 1000 prompts."""
    rows = [{"prompt": f"question {i}"} for i in range(1000)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(name="asked", path=str(tmp_path / "asked.jsonl"))


def prompts(given, count, *, side, seed=0, say=unsaid, test_share=0.1):
    options = {"stage": "ppo", "world": WORLD, "mix": MIX, "side": side, "test_share": test_share}
    return feed.prompts(given, count, seed=seed, say=say, **options)


def texts(rows):
    return {row.turns[-1].content for row in rows}


def test_prompts_of_a_file_are_split_once_for_all(asked):
    said = []
    found = {
        side: [prompts([asked], 1000, side=side, seed=seed, say=said.append) for seed in range(3)] for side in SIDES
    }
    # A tenth is tested, and a tenth of the other nine validates: 1000 prompts, so 100 and 90, give or take 3 x 9.5.
    for side, expected in (("train", 810), ("validation", 90), ("test", 100)):
        assert abs(len(found[side][0]) - expected) < 38
    for drawn in found.values():
        assert texts(drawn[0]) == texts(drawn[1]) == texts(drawn[2])
    # Together they are all, so no two sides have one in common.
    assert sum(len(drawn[0]) for drawn in found.values()) == 1000
    assert set().union(*(texts(drawn[0]) for drawn in found.values())) == {f"question {i}" for i in range(1000)}
    assert found["train"][0] != found["train"][1]  # in another order, so that the first few differ


def test_a_file_is_read_once_however_often_it_is_asked_for(asked):
    said = []
    say = said.append
    for seed in range(5):
        assert len(prompts([asked], 8, side="train", seed=seed, say=say)) == 8
    assert said == ["asked: 1,000 of 1,000 rows used"]


def test_prompts_of_the_micro_world_keep_their_side():
    asks = {}
    for side in SIDES:
        rows = [row for seed in range(5) for row in prompts([MICROWORLD], 300, side=side, seed=seed)]
        assert len(rows) == 1500
        assert {row.kind for row in rows} == set(MIX)
        asks[side] = {read_prompt(row.turns)[0] for row in rows}
    assert {ask.held_out for ask in asks["train"] if ask.form == "how"} == {False}
    assert {ask.form for ask in asks["train"]} == {"how", "where", "color", "list"}
    for side in ("validation", "test"):
        assert all(ask.held_out for ask in asks[side])  # which facts and lists never are
    # Combinations, not wordings: one that a checkpoint was chosen by is not asked again for the report.
    assert asks["train"].isdisjoint(asks["validation"] | asks["test"])
    assert asks["validation"].isdisjoint(asks["test"])


def test_a_side_is_full_however_few_questions_it_has():
    rows = prompts([MICROWORLD], 301, side="validation")
    assert len(rows) == 301 > len({read_prompt(row.turns)[0] for row in rows})
    assert prompts([MICROWORLD], 0, side="validation") == []


def test_sources_are_mixed(asked):
    rows = prompts([asked, MICROWORLD], 100, side="train", say=[].append)
    assert {row.source for row in rows} == {"asked", "microworld"}
    assert rows == prompts([asked, MICROWORLD], 100, side="train", say=[].append)


def test_demonstrations_and_texts_of_both_kinds(tmp_path):
    write_jsonl(tmp_path / "shown.jsonl", [Dialogue("d", (Turn("user", "q"), Turn("assistant", "a")), "people")])
    (tmp_path / "book.txt").write_text("once upon a time\n")
    shown, book = (Source(name="mine", path=str(tmp_path / name)) for name in ("shown.jsonl", "book.txt"))
    few = Source(name="microworld", limit=7)
    rows = feed.demonstrations([few, shown], seed=0, stage="sft", world=WORLD, test_share=0.1, say=[].append)
    assert [len(row.turns) > 0 for row in rows] == [True] * 8
    assert rows[-1].turns == (Turn("user", "q"), Turn("assistant", "a"))
    words = feed.texts([MICROWORLD, book], words=200, seed=0, stage="base", say=lambda line: None)
    assert words[-1] == "once upon a time"
    assert 200 <= sum(len(text.split()) for text in words[:-1]) < 200 + 4 * 600


def pairs_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def numbered(count, start=0, **more):
    return [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": "bad", **more} for i in range(start, count)]


def test_pairs_are_split_by_prompt_and_sorted_by_domain(tmp_path):
    for name in ("kind", "harmless"):
        rows = [{"prompt": f"{name} {i % 20}", "chosen": f"good {i}", "rejected": "bad"} for i in range(40)]
        pairs_file(tmp_path / f"{name}.jsonl", rows)
    given = [
        Source(name="kind", path=str(tmp_path / "kind.jsonl")),
        Source(name="harmless", path=str(tmp_path / "harmless.jsonl"), kind="safety"),
    ]
    said = []
    found = feed.preferences(given, test_share=0.25, say=said.append)
    for domain, name in (("helpfulness", "kind"), ("safety", "harmless")):
        train, test = found[domain].train, found[domain].test
        sides = [{row.prompt[0].content for row in side} for side in (train, test)]
        assert sides[0].isdisjoint(sides[1])
        assert sides[0] | sides[1] == {f"{name} {i}" for i in range(20)}
        assert len(train) + len(test) == 40
        assert f"{name}: {len(train)} pairs to train on, {len(test)} held out by prompt" in said
        assert train[1].chosen == list(train)[1].chosen == train[1:][0].chosen


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize("test_share", [0.1, 0.3])
def test_what_pairs_are_tested_on_is_no_policys_training_prompt(tmp_path, each, test_share):
    """The reward stage and the policies' stages split one set apart from each other, and must come to the same."""
    rows = [{"prompt": f"question {i % 60}", "chosen": f"good {i}", "rejected": "bad"} for i in range(60 * each)]
    given = [Source(name="pairs", path=str(pairs_file(tmp_path / "pairs.jsonl", rows)))]
    say = [].append
    split = feed.preferences(given, test_share=test_share, say=say)["helpfulness"]
    tested, trained = ({row.prompt[-1].content for row in side} for side in (split.test, split.train))
    assert tested
    for seed in range(3):
        asked = {
            side: texts(prompts(given, 1000, side=side, seed=seed, say=say, test_share=test_share)) for side in SIDES
        }
        assert asked["test"] == tested
        assert asked["train"] | asked["validation"] == trained
        assert asked["train"].isdisjoint(asked["validation"])


def test_a_prompt_in_two_sets_is_on_one_side(tmp_path):
    """However much else the sets hold, and however the prompt is written."""
    small = [{**row, "prompt": row["prompt"].upper() + "  "} for row in numbered(60)]
    given = [
        Source(name="small", path=str(pairs_file(tmp_path / "small.jsonl", small))),
        Source(name="large", path=str(pairs_file(tmp_path / "large.jsonl", numbered(900, start=40)))),
    ]
    with pytest.raises(DataError, match="the same pair as an earlier row"):  # question 40 to 59, in capitals
        feed.preferences(given, test_share=0.3, say=[].append)
    for row in small:
        row["chosen"] += "!"
    pairs_file(tmp_path / "small.jsonl", small)
    split = feed.preferences(given, test_share=0.3, say=[].append)["helpfulness"]
    sides = [{row.prompt[0].content.lower().strip() for row in side} for side in (split.train, split.test)]
    assert sides[0].isdisjoint(sides[1])
    assert len(sides[0] | sides[1]) == 900


def test_sets_that_are_all_to_train_on_or_to_test_with_may_leak_and_it_is_said(tmp_path):
    train = pairs_file(tmp_path / "train.jsonl", numbered(50))
    test = pairs_file(tmp_path / "test.jsonl", [{**row, "chosen": "best"} for row in numbered(53, start=47)])
    given = [Source(name="a", path=str(train), use="train"), Source(name="b", path=str(test), use="test")]
    with pytest.raises(DataError, match="its prompt is tested") as caught:
        feed.preferences(given, test_share=0.1, say=[].append)
    assert caught.value.where == f"{train}:48"
    assert f"{test}:1" in caught.value.what
    said = []
    given[0] = given[0].model_copy(update={"on_bad_row": "drop"})
    split = feed.preferences(given, test_share=0.1, say=said.append)["helpfulness"]
    assert (len(split.train), len(split.test)) == (47, 6)
    assert said[0] == "a: 47 of 50 rows used; 3 dropped: its prompt is tested"


@pytest.mark.parametrize(
    ("change", "what", "left"),
    [
        ({}, "the same pair as an earlier row", 9),
        ({"chosen": "bad", "rejected": "good 3"}, "an earlier row prefers the other answer of the same two", 8),
        ({"id": "x7", "prompt": "another"}, "an earlier row has the same id", 9),
    ],
)
def test_repeats_stop_the_stage_or_are_left_out_and_counted(tmp_path, change, what, left):
    rows = [{"id": f"x{i}", **row} for i, row in enumerate(numbered(9))]
    rows.append({**rows[3], "id": "x9", **change})
    path = pairs_file(tmp_path / "pairs.jsonl", rows)
    source = Source(name="pairs", path=str(path), use="train")
    with pytest.raises(DataError, match=what) as caught:
        feed.preferences([source], test_share=0.5, say=[].append)
    assert caught.value.where == f"{path}:10"
    said = []
    split = feed.preferences([source.model_copy(update={"on_bad_row": "drop"})], test_share=0.5, say=said.append)
    assert len(split["helpfulness"].train) == left
    assert f"{10 - left} dropped: {what}" in said[0]


def test_demonstrations_of_tested_prompts_stay_unless_they_are_split(tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": "a"}]}
            for i in range(200)]  # fmt: skip
    source = Source(name="shown", path=str(pairs_file(tmp_path / "shown.jsonl", rows)))
    pairs = Source(name="pairs", path=str(pairs_file(tmp_path / "pairs.jsonl", numbered(200))))
    tested = {
        row.prompt[0].content for row in feed.preferences([pairs], test_share=0.2, say=[].append)["helpfulness"].test
    }
    options = {"seed": 0, "stage": "sft", "world": WORLD, "test_share": 0.2, "say": [].append}
    assert len(feed.demonstrations([source], **options)) == 200
    kept = feed.demonstrations([source.model_copy(update={"use": "split"})], **options)
    assert {row.turns[0].content for row in kept} == {f"question {i}" for i in range(200)} - tested


def test_conversations_come_from_the_micro_world_alone(asked):
    options = {"min_turns": 3, "max_turns": 5, "seed": 0, "held_out": True, "stage": "gatt", "test_share": 0.1}
    rows = feed.conversations([MICROWORLD], 20, **options)
    assert len(rows) == 20
    assert all(row.instruction and 3 <= len(row.user_turns) <= 5 for row in rows)
    assert len({row.id for row in rows}) == 20
    assert {row.source for row in rows} == {"microworld"}
    with pytest.raises(ConfigError, match=r"gatt\.data names asked, and there are no instructions"):
        feed.conversations([asked], 20, **options)


def test_dialogues_of_a_set_are_put_under_drawn_instructions(tmp_path):
    """Users' turns are kept, cut at the most, held out by their beginning; what is too short or has a system is not."""

    def row(n, turns, system=()):
        spoken = [turn for i in range(turns) for turn in (Turn("user", f"q{n}.{i}"), Turn("assistant", "a"))]
        return Dialogue(f"d{n}", (*system, *spoken), "people")

    rows = [row(n, 4) for n in range(30)] + [row(n, 1) for n in range(30, 40)]
    rows += [row(n, 4, (Turn("system", "be nice"),)) for n in range(40, 50)]
    write_jsonl(tmp_path / "d.jsonl", rows)
    source = Source(name="mine", path=str(tmp_path / "d.jsonl"))
    lists = Lists({"languages": ["French", "German"]})
    options = {"min_turns": 2, "max_turns": 3, "seed": 0, "stage": "gatt", "lists": lists, "test_share": 0.1}
    train, test = (feed.conversations([source], 60, held_out=held_out, **options) for held_out in (False, True))
    assert len(train) == len({c.id for c in train}) == 60
    assert {c.instruction for c in train} == {"Speak in French.", "Speak in German."}
    for c in train + test:
        n = c.user_turns[0].removeprefix("q").removesuffix(".0")
        assert int(n) < 30
        assert c.user_turns == tuple(f"q{n}.{i}" for i in range(3))
    assert not {c.user_turns for c in train} & {c.user_turns for c in test}
    with pytest.raises(DataError, match="no dialogue of 9 user turns or more"):
        feed.conversations([source], 5, held_out=False, **{**options, "min_turns": 9, "max_turns": 9})


def test_every_turn_of_a_conversation_is_tagged():
    options = {"min_turns": 18, "max_turns": 18, "seed": 0, "held_out": False, "stage": "gatt", "test_share": 0.1}
    rows = feed.conversations([MICROWORLD], 60, **options)
    found = []
    for row in rows:
        assert len(row.is_safety) == len(row.user_turns)
        found += zip(row.user_turns, row.is_safety, strict=True)
    # 1,080 turns, 4 % of them unsafe: none among them once in e^43, and borderline ones are not tagged.
    assert {judge([Turn("user", text)], "").kind for text, tag in found if tag} == {"unsafe"}
    assert {judge([Turn("user", text)], "").kind for text, tag in found if not tag} == {"safe", "border"}


def test_a_stage_without_a_source_says_what_it_needs():
    with pytest.raises(ConfigError, match=r"ppo\.data is empty"):
        prompts([], 5, side="train")


def test_rows_of_an_earlier_stage(tmp_path):
    row = Prompt("p", (Turn("user", "q"),), "people", is_safety=False)
    write_jsonl(tmp_path / "rows.jsonl", [row])
    assert feed.stored(tmp_path / "rows.jsonl", Prompt) == [row]
    assert feed.stored(tmp_path / "none.jsonl", Prompt) == []
