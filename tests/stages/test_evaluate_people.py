"""An instruction over the dialogues of people: which are held, what is judged by which rule, and what is left out."""

import json
from types import SimpleNamespace

import pytest

from rlhf.data.conversations import Conversation
from rlhf.errors import DataError
from rlhf.evaluation import checks, multi_turn, people
from rlhf.evaluation.checks import INSTRUCTIONS, Checked
from rlhf.generation.protocol import Completion
from rlhf.reporting.page import heat
from rlhf.reporting.table import multi_turn_sheet
from rlhf.rollout import Sample
from stages import evaluate

COMMA, LOWER = INSTRUCTIONS[2], INSTRUCTIONS[0]
KEPT = {
    "change_case:english_lowercase": ("of course.", "Of course."),
    "change_case:english_capital": ("OF COURSE.", "Of course."),
    "punctuation:no_comma": ("Yes of course.", "Yes, of course."),
    "startend:quotation": ('"Yes."', "Yes."),
    "startend:end_checker": ("Yes. Is there anything else?", "Is there anything else? Yes."),
    "detectable_format:title": ("<<Bread>> Take flour.", "Bread. Take flour."),
    "detectable_content:postscript": ("Yes.\nP.S. Really.", "Yes. Really."),
    "detectable_format:number_bullet_lists": ("* a\n* b\n* c", "* a\n* b"),
    "length_constraints:number_words": ("word " * 19, "word " * 20),
    "keywords:existence": ("Indeed it is.", "It is."),
    "detectable_format:json_format": ('{"answer": "yes"}', "yes"),
}


def test_every_instruction_of_ours_is_kept_by_one_answer_and_not_by_another():
    assert {rule for row in INSTRUCTIONS for rule in row.rules} == set(KEPT)
    assert len({row.prompt for row in INSTRUCTIONS}) == len(INSTRUCTIONS)
    for row in INSTRUCTIONS:
        good, bad = KEPT[row.rules[0]]
        assert row.kept(good) == [True], row.prompt
        assert row.kept(bad) == [False], row.prompt


# ── judged turn by turn ──────────────────────────────────────────────────────────────────────────────────────────────

HELD = [
    Conversation("a", COMMA.prompt, ("how ?", "why ?"), (False,) * 2, "mine"),
    Conversation("b", LOWER.prompt, ("who ?", "when ?"), (False,) * 2, "mine"),
]
SCRIPT = [["Yes, sir.", "me."], ["Because.", "Today."]]  # a keeps its rule in the second turn, b in the first


@pytest.fixture
def scripted(monkeypatch):
    """A policy that reads from the script; each prompt has as many tokens as words."""
    asked = []

    def answer(policy, tokenizer, prompts, sampling, **options):
        texts = [SCRIPT[len(asked)]["ab".index(prompt.id)] for prompt in prompts]
        asked.append(prompts)
        ended = Completion((9,), (0.0,), "stop")
        return [[Sample(prompt, (8,), ended, text)] for prompt, text in zip(prompts, texts, strict=True)]

    monkeypatch.setattr(multi_turn, "sample", answer)
    monkeypatch.setattr(
        multi_turn, "encode_prompt", lambda _, turns: [0] * sum(len(turn.content.split()) for turn in turns)
    )
    return asked


def rates(context=None):
    rules = {row.prompt: row for row in (COMMA, LOWER)}
    return multi_turn.follow_rates(
        None, None, HELD, turns=(1, 2), max_new_tokens=3, judged=multi_turn.by_rules(rules), context=context
    )


def test_the_words_counted_below():
    assert [len(c.instruction.split()) for c in HELD] == [7, 6]


def test_each_answer_is_judged_by_the_rule_of_its_own_dialogue(scripted):
    found = rates()
    assert found.followed == {1: 0.5, 2: 0.5}
    assert found.content == {}  # nobody knows what these answers are worth
    assert found.lasted == {0, 1}
    assert {prompt.source for prompts in scripted for prompt in prompts} == {"mine"}


def test_a_dialogue_that_outgrows_the_context_is_over(scripted):
    # Instructions of 7 and 6 words, then a question of 2, an answer and a question of 2: 13 and 11 of a room of 12.
    found = rates(context=12 + 3)
    assert found.lasted == {1}
    assert found.followed == {1: 0.5, 2: 0.0}  # of the second turn b alone is left, which says "Today."
    assert found.of(found.lasted).followed == {1: 1.0, 2: 0.0}
    assert found.intervals()["2"] == pytest.approx((0.0, 0.7934), abs=1e-3)  # Wilson, 0 of 1: z^2 / (1 + z^2)
    assert rates_of_nothing(scripted).followed == {}


def rates_of_nothing(asked):
    """No prompt fits."""
    asked.clear()
    found = rates(context=4)
    assert asked == []
    return found


# ── which dialogues, under which instructions ────────────────────────────────────────────────────────────────────────


def written(path, rows):
    """The file, a row a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chat(number, turns, system=False):
    spoken = [{"role": "system", "content": "be brief"}] if system else []
    for turn in range(turns):
        spoken += [{"role": "user", "content": f"how {number} {turn} ?"}, {"role": "assistant", "content": "so ."}]
    return {"messages": spoken}


@pytest.fixture
def of(job_of, tmp_path):
    """Evaluation of these rows as a set that is all for testing."""

    def make(rows, **settings):
        data = [{"name": "chats", "path": written(tmp_path / "chats.jsonl", rows), "use": "test"}]
        return SimpleNamespace(
            job=job_of("evaluate", data=data, **{"turns": [1, 2], **settings}), policies={}, tokenizer=None
        )

    return make


@pytest.fixture(autouse=True)
def any_template(monkeypatch, request):
    """No tokenizer here, but for the whole stage: whatever is said can be encoded, a token for each word."""
    if "saved" not in request.fixturenames:
        monkeypatch.setattr(
            people, "encode_dialogue",
            lambda _, turns: SimpleNamespace(input_ids=[0] * sum(len(turn.content.split()) for turn in turns)),
        )  # fmt: skip


def test_dialogues_that_are_long_enough_stand_once_each(of):
    rows = [chat(i, 2) for i in range(5)] + [chat(9, 1), chat(8, 3), chat(7, 3, system=True)]
    found = people.dialogues(of(rows, dialogues=64), [COMMA.prompt, LOWER.prompt], what="turns")
    said = sorted(c.user_turns for c in found)
    assert said == sorted((f"how {i} 0 ?", f"how {i} 1 ?") for i in (0, 1, 2, 3, 4, 8))
    assert {c.instruction for c in found} <= {COMMA.prompt, LOWER.prompt}
    assert {c.answers for c in found} == {("so .", "so .")}
    assert len(people.dialogues(of(rows, dialogues=3), [COMMA.prompt], what="turns")) == 3


def test_where_no_dialogue_is_long_enough_it_is_said(of, screen):
    assert people.multi_turn(of([chat(1, 1)]), {}) == {}
    assert people.multi_turn(of([{"prompt": "how ?"}], changes=2), {}) == {}
    lines = screen.getvalue().splitlines()
    short, changes, prompts = (line for line in lines if line.startswith("left out"))
    assert "chats" in short
    assert "2 user turns or more" in short
    assert "lower evaluate.turns" in short
    assert "evaluate.changes" in changes
    assert "chats.jsonl:1" in prompts
    assert "messages, turns, or prompt with completion" in prompts


def test_instructions_of_a_file_whose_rules_are_unknown_are_counted(of, tmp_path, screen):
    row = {"prompt": "Use no commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    foreign = {"prompt": "Say it in French.", "instruction_id_list": ["language:response_language"], "kwargs": [{}]}
    e = of([chat(1, 1)], instructions={"path": written(tmp_path / "own.jsonl", (row, foreign, row))})
    assert checks.known(people.asked_for(e)) == {"Use no commas.": Checked.from_row(row)}
    assert people.multi_turn(e, {}) == {}  # no dialogue of two turns
    assert "left out: 2 of 3 instructions of" in screen.getvalue()


# ── the whole stage ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_checkpoint_by_itself_in_dialogues_of_people(job_of, saved, policy, tmp_path):
    policy.config.max_position_embeddings = 256
    folder = saved.policy("elsewhere")
    path = written(tmp_path / "chats.jsonl", [chat(i, 3) for i in range(4)])
    job = job_of(
        "evaluate", reads={"policies": [], "reward": [], "preferences*": []}, model={"max_length": 256},
        data=[{"name": "chats", "path": path, "use": "test"}],
        policies=[{"name": "mine", "path": str(folder / "checkpoint")}], turns=[1, 2, 3], max_new_tokens=4,
    )  # fmt: skip
    evaluate.run(job)
    results = json.loads((job.out / "results.json").read_text())
    found, attention = results["multi_turn"], results["attention"]
    assert (attention["n"], list(attention["final"])) == (4, ["1", "2", "3"])
    assert all(0 < paid <= 1 for paid in attention["final"].values())
    assert (found["n"], found["final_policy"]) == (4, "mine")
    assert list(found["final"]) == list(found["interval_final"]) == ["1", "2", "3"]
    (row,) = multi_turn_sheet({"multi_turn": found}).rows
    assert row[0] == "final (mine)"
    assert [name for name, _ in heat(found)] == ["final: mine"]
    assert "content_final" not in found


def test_attention_is_read_in_dialogues_as_they_were_given(of, tmp_path, monkeypatch, screen):
    e = of([chat(i, 2) for i in range(9)])
    e.policies, e.tokenizer = {"sft": tmp_path / "sft", "ppo": tmp_path / "ppo"}, None
    room = {"sft": 40, "ppo": 19}  # a dialogue has 12 words, under an instruction of 7 or 10
    monkeypatch.setattr(people, "context_of", lambda folder: room[folder.name])
    rules = {row.prompt: row for row in (COMMA, INSTRUCTIONS[7])}
    monkeypatch.setattr(people, "asked_for", lambda e: list(rules.values()))
    drawn = people.dialogues(e, list(rules), what="attention")
    short = [c.user_turns[0] for c in drawn if c.instruction == COMMA.prompt]
    assert 2 < len(short) < len(drawn) == 9
    found = people.as_given(e, 9)
    assert [turns[1].content for turns in found] == short
    assert {tuple(turn.role for turn in turns) for turns in found} == {("system", *["user", "assistant"] * 2)}
    assert f"left out: {9 - len(short)} of 9 dialogues (Fig 10)" in screen.getvalue()
    assert len(people.as_given(e, 2)) == 2


def test_the_note_says_who_judged():
    found = {"n": 9, "instructions": 4, "before": {"1": 1.0, "2": 0.5}, "after": {"1": 1.0, "2": 1.0}}
    assert multi_turn_sheet({"multi_turn": found}).note == (
        "9 dialogues, Ghost Attention before and after; instruction given in the first turn only;"
        " 4 instructions, which rules check"
    )


def test_policies_are_held_against_each_other_in_the_same_dialogues(of, monkeypatch, screen):
    """One makes the first dialogue outgrow the context, the other the third: of four two are left for both."""
    e = of([chat(i, 2) for i in range(4)])
    e.model = e.engine = lambda name: name
    judged = {
        "sft": {1: dict.fromkeys(range(4), (False, None)), 2: {i: (i == 1, None) for i in (1, 2, 3)}},
        "ppo": {1: dict.fromkeys(range(4), (True, None)), 2: dict.fromkeys((0, 1, 3), (True, None))},
    }
    monkeypatch.setattr(people, "follow_rates", lambda policy, *_, **more: multi_turn.TurnRates(judged[policy]))
    monkeypatch.setattr(people, "room", lambda e: 100)
    found = people.multi_turn(e, {"before": "sft", "after": "ppo"})
    assert (found["n"], found["before"], found["after"]) == (2, {"1": 0.0, "2": 0.5}, {"1": 1.0, "2": 1.0})
    assert "left out: 2 of 4 dialogues (Table 30), which outgrew the context" in screen.getvalue()


def test_what_the_template_refuses_is_left_out(of, monkeypatch, screen):
    def encoded(_, turns):
        if "how 2" in turns[1].content:
            raise DataError("a message holds a control tag")
        return SimpleNamespace(input_ids=[0])

    monkeypatch.setattr(people, "encode_dialogue", encoded)
    e = of([chat(i, 2) for i in range(4)])
    found = people.dialogues(e, [COMMA.prompt], what="many turns")
    assert {c.user_turns[0] for c in found} == {"how 0 0 ?", "how 1 0 ?", "how 3 0 ?"}
    assert "left out: many turns of 1 of 4 dialogues, which the chat template refuses" in screen.getvalue()


def test_two_sources_are_mixed(job_of, tmp_path, screen):
    data = [{"name": "microworld"}]
    for name in ("one", "two"):
        path = written(tmp_path / f"{name}.jsonl", [chat(f"{name} {i}", 2) for i in range(40)])
        data.append({"name": name, "path": path, "use": "test"})
    job = job_of("evaluate", data=data, turns=[2], dialogues=20)
    found = people.dialogues(SimpleNamespace(job=job, tokenizer=None), [COMMA.prompt], what="many turns")
    counts = [sum(c.source == name for c in found) for name in ("one", "two")]
    assert sum(counts) == 20
    assert min(counts) >= 3  # of 20 drawn from 20 and 20; fewer than 3 once in 10,000
    assert "left out: many turns of microworld" in screen.getvalue()
