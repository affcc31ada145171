"""What the doctor says of tokens: which are trained, what stops, what is too long; and prompts two stages share."""

import io
import json

import pytest
from rich.console import Console

from rlhf.cli import main
from rlhf.data.sources import Counts, Raw
from rlhf.data.types import Dialogue, Preference, Prompt, Turn
from rlhf.doctor import show
from rlhf.doctor.problems import Problems
from rlhf.doctor.rows import Read
from rlhf.doctor.tokens import Tokens, View
from rlhf.schema import Recipe, Source

QUESTION = (Turn("user", "how do i open the door ?"),)


@pytest.fixture
def looked(tokenizer):
    """looked(record, max_length=..): the tally of one row, and the problems."""

    def look(record, stage="reward", tokenizer=tokenizer, on_bad_row="error", **recipe):
        settings = Recipe.model_validate({"stages": ["sft"], "model": {"max_length": 128}, **recipe})
        problems = Problems()
        tokens = Tokens(tokenizer, settings, problems)
        read = Read(stage, f"{stage}.data.0", Source(name="mine", on_bad_row=on_bad_row), Counts("mine", 1, 1))
        stays = tokens.look(read, Raw("pairs.jsonl:3", {}, '{"prompt": 1, "chosen": 2, "rejected": 3}'), record)
        assert stays == bool(read.counts.used)
        return tokens.tallies[read.setting], problems, *([read.counts] if on_bad_row == "drop" else [])

    return look


def pair(chosen="take the key .", rejected="good luck !"):
    return Preference("p", QUESTION, chosen, rejected, "mine", None, None, None, is_safety=False)


def test_answers_and_their_ends_are_trained_and_nothing_else(looked, tokenizer):
    answer = Turn("assistant", "take the key .")
    tally, problems = looked(Dialogue("d", (*QUESTION, answer, *QUESTION, answer), "mine"), "sft")
    (view,) = tally.views
    trained = "".join(token for token, mark in view.tokens if mark == "trained")
    assert trained.split() == [*["take", "the", "key", ".", "</s>"]] * 2
    assert tally.trained == sum(mark == "trained" for _, mark in view.tokens)
    assert tally.tokens == len(view.tokens)
    assert not len(problems)


def test_of_a_dialogue_for_ghost_attention_the_last_answer_alone_is_trained(looked, tokenizer):
    """It answers itself: what is too long is what users say, not the answers of the data."""
    answer = Turn("assistant", "take the key .")
    dialogue = Dialogue("d", (*QUESTION, answer) * 3, "mine")
    config = {"max_turns": 2, "max_new_tokens": 40}
    tally, problems = looked(dialogue, "gatt", gatt=config)
    (view,) = tally.views
    marks = [mark for _, mark in view.tokens]
    trained = [token.strip() for token, mark in view.tokens if mark == "trained"]
    assert [token for token in trained if token] == ["take", "the", "key", ".", "</s>"]
    assert "trained" not in marks[: len(marks) // 2]  # two of three exchanges are left, of equal length
    assert not len(problems)
    assert (
        len(looked(Dialogue("d", (*QUESTION, Turn("assistant", "key " * 200)) * 2, "m"), "gatt", gatt=config)[1]) == 0
    )
    long = Dialogue("d", (Turn("user", "key " * 50), answer) * 2, "mine")
    assert "the context holds 128" in looked(long, "gatt", gatt=config)[1].first[0].what
    assert looked(Dialogue("d", (*QUESTION, answer), "mine"), "gatt", gatt=config)[0].rows == 0  # below min_turns


def test_both_replies_are_as_wide_and_scored_at_their_ends(looked):
    tally, _ = looked(pair(rejected="good luck and take the key in the house !"))
    chosen, rejected = tally.views
    assert len(chosen.tokens) == len(rejected.tokens)
    assert {mark for _, mark in rejected.tokens} == {"context", "trained", "score"}
    assert [mark for _, mark in chosen.tokens][-1] == "padding"
    assert [token for token, mark in chosen.tokens if mark == "score"] == ["</s>"]


def test_the_same_tokens_on_both_sides_are_a_problem(looked):
    _, problems = looked(pair(rejected=" take the key . "))
    (fault,) = problems.first
    assert (fault.what, fault.where) == ("chosen and rejected are the same tokens", "pairs.jsonl:3:28")
    assert fault.hint == "on_bad_row: drop leaves such rows out and counts them"
    _, problems, counts = looked(pair(rejected=" take the key . "), on_bad_row="drop")
    assert not len(problems)
    assert str(counts) == "mine: 0 of 1 rows used; 1 dropped: chosen and rejected are the same tokens"


def test_too_long_is_a_problem_unless_the_recipe_says_what_to_do(looked):
    size = looked(pair())[0].longest
    for policy, many in (("error", 1), ("drop", 0), ("truncate_left", 0)):
        tally, problems = looked(pair(), model={"max_length": size - 1}, data={"too_long": policy})
        assert (tally.too_long, len(problems)) == (1, many)
    assert looked(pair(), model={"max_length": size})[0].too_long == 0


def test_a_prompt_needs_room_for_its_answer(looked, tokenizer):
    prompt = Prompt("p", QUESTION, "mine", is_safety=False)
    size = looked(prompt, "ppo", ppo={"max_new_tokens": 40})[0].longest
    assert not len(looked(prompt, "ppo", ppo={"max_new_tokens": 128 - size})[1])
    _, problems = looked(prompt, "ppo", ppo={"max_new_tokens": 129 - size})
    assert problems.first[0].what == f"a prompt of {size} tokens and an answer of {129 - size}; the context holds 128"


def test_a_control_tag_is_told_by_its_place(looked):
    _, problems = looked(pair(chosen="take </s> it"))
    assert (problems.first[0].what, problems.first[0].where) == ("a message holds </s>", "pairs.jsonl:3:15")


def test_signs_say_what_colours_say():
    view = View("x", [("how\n", "context"), ("so", "trained"), ("</s>", "score"), ("_", "padding")])
    assert show.spelt(view).plain == "how⏎|[so][</s>*]_"
    screen = io.StringIO()
    Console(file=screen, force_terminal=True, color_system="standard", width=80).print(show.spelt(view))
    assert "\x1b[" in screen.getvalue()
    plain = io.StringIO()
    Console(file=plain, width=80).print(show.spelt(view), highlight=False)
    assert plain.getvalue() == "how⏎|[so][</s>*]_\n"


def test_answers_alike_but_for_case_are_encoded_wherever_they_stand(tmp_path, capsys, saved_base):
    """Of many rows the first 500 are encoded; row 600 differs in case only, which this tokenizer doesn't see."""
    from tokenizers import normalizers

    from rlhf.data.tokenizer import train_tokenizer

    lower = train_tokenizer(["take the key"], vocab_size=300, max_length=128)
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    lower.save_pretrained(saved_base / "hh" / "base" / "checkpoint")
    rows = [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": "bad"} for i in range(620)]
    rows[599] |= {"chosen": "Take the key", "rejected": "take the key"}
    given = f"{{name: pairs, path: {written(tmp_path / 'pairs.jsonl', rows)}"
    words = ["check", "data", "stage=reward", "config=hh", f"runs_dir={saved_base}"]
    assert main([*words, f"reward.data=[{given}}}]"]) == 65
    out = capsys.readouterr().out
    assert "pairs.jsonl:600:54" in out
    assert "chosen and rejected are the same tokens" in out
    assert main([*words, f"reward.data=[{given}, on_bad_row: drop}}]"]) == 0
    assert "619 of 620 rows used; 1 dropped: chosen and rejected are the same tokens" in capsys.readouterr().out


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_demonstrations_of_tested_prompts_are_a_problem_with_its_fix(tmp_path, capsys):
    asked = [f"question {i}" for i in range(100)]
    shown = [{"prompt": text.upper(), "completion": "a"} for text in asked]
    pairs = [{"prompt": text, "chosen": "good", "rejected": "bad"} for text in asked]
    words = [
        "check", "data", "stage=sft,reward", "config=hh", f"runs_dir={tmp_path}",
        f"reward.data=[{{name: pairs, path: {written(tmp_path / 'pairs.jsonl', pairs)}}}]",
    ]  # fmt: skip
    sft = f"{{name: shown, path: {written(tmp_path / 'shown.jsonl', shown)}}}"
    assert main([*words, f"sft.data=[{sft}]"]) == 65
    out = capsys.readouterr().out
    assert "prompts of sft.data.0 are tested by reward.data" in out
    assert "fix: hold them out: use: split in sft.data.0" in out
    assert main([*words, f"sft.data=[{sft[:-1]}, use: split}}]"]) == 0


def test_it_reads_tokens_with_the_recipes_own_tokenizer(tmp_path, capsys, saved_base):
    pairs = [{"prompt": "how do i open the door ?", "chosen": "take the key .", "rejected": "good luck !"}]
    given = f"reward.data=[{{name: pairs, path: {written(tmp_path / 'pairs.jsonl', pairs)}}}]"
    assert main(["check", "data", "stage=reward", "config=hh", f"runs_dir={saved_base}", given]) == 0
    out = capsys.readouterr().out
    assert "1 rows encoded" in out
    assert "[</s>*]" in out
    assert "tokens are not checked" not in out


@pytest.mark.parametrize("stage", ["gatt", "scaling"])
def test_rows_of_every_stage_are_read(tmp_path, capsys, saved_base, stage):
    says = [{"role": "user", "content": "how ?"}, {"role": "assistant", "content": "take the key ."}]
    path = written(tmp_path / "rows.jsonl", [{"messages": says * 2}, {"messages": says * 2 + says[1:]}])
    words = [f"stages=[{stage}]", f"{stage}.data=[{{name: mine, path: {path}}}]", f"{stage}.max_new_tokens=8"]
    assert main(["check", "data", f"stage={stage}", "config=hh", f"runs_dir={saved_base}", *words]) == 65
    out = capsys.readouterr().out
    assert f"{stage}.data.0  mine: 1 of 2 rows used" in out
    assert "rows.jsonl:2" in out


@pytest.fixture
def saved_base(tmp_path, policy, tokenizer):
    from rlhf.models.load import save

    save(policy, tokenizer, tmp_path / "runs" / "hh" / "base" / "checkpoint")
    return tmp_path / "runs"


def test_without_a_tokenizer_nothing_heavy_is_loaded(tmp_path):
    import os
    import subprocess
    import sys
    from pathlib import Path

    rows = [{"prompt": "q", "chosen": "good", "rejected": "bad"}]
    given = f"reward.data=[{{name: pairs, path: {written(tmp_path / 'pairs.jsonl', rows)}}}]"
    script = (
        "import sys\nfrom rlhf.cli import main\ncode = main(sys.argv[1:])\n"
        "loaded = {'torch', 'transformers', 'datasets', 'trl'} & set(sys.modules)\nassert not loaded, loaded\n"
        "sys.exit(code)\n"
    )
    words = ["check", "data", "stage=reward", "config=hh", "runs_dir=runs", given]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "tokens are not checked: base is not made" in done.stdout
