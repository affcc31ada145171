"""Looking for trouble: healthy metrics are left alone, each sick one is named with its cure, no secret is repeated."""

import json

import pytest

from rlhf.checkpoint import open_artefact
from rlhf.cli import main
from rlhf.tracking.health import RULES, Watch, examine, healthy, length_slope

WELL = {
    "gen/eos_rate": [0.6, 0.9, 0.99],
    "objective/kl": [0.0, -0.05, 2.0],
    "val/logprob_drift": [1e-6, 2e-6],
    "policy/clipfrac_avg": [0.0, 0.1, 0.2],
    "value/explained_variance": [-0.5, *[0.3] * 24],
    "objective/entropy": [1.0] * 25,
    "gen/length": [14.0] * 25,
    "val/ratio_first": [1.0, 1.0001],
    "reward/length_slope": [0.9, *[0.3] * 10],
    "reward/std": [0.0, 1.3],
    "sft/loss": [3.0, *[0.5] * 24],
}
SICK = {
    "gen/eos_rate": [0.9, 0.2],
    "objective/kl": [0.0, -3.0],
    "val/logprob_drift": [0.0, 0.9],
    "policy/clipfrac_avg": [0.5] * 10,
    "value/explained_variance": [0.3, *[-0.5] * 24],
    "objective/entropy": [1.0] * 15 + [0.01] * 10,
    "gen/length": [14.0] * 15 + [90.0] * 10,
    "val/ratio_first": [1.0, 0.9],
    "reward/length_slope": [0.3] * 5 + [0.9] * 10,
    "reward/std": [1.3, 0.0],
    "sft/loss": [3.0] + [0.5] * 15 + [2.0] * 9,
}


def rows(name, values):
    return [{"step": i, "time": 0.1, name: value} for i, value in enumerate(values)]


@pytest.mark.parametrize("name", WELL)
def test_a_healthy_course_is_left_alone(name):
    assert examine(rows(name, WELL[name])) == []


@pytest.mark.parametrize("name", SICK)
def test_a_sick_course_is_named_with_its_cure(name):
    [finding] = examine(rows(name, SICK[name]))
    assert finding.metric == name
    assert finding.cure


def test_what_is_called_healthy_is_what_the_rules_ask():
    assert healthy("gen/eos_rate") == "50% at least"
    assert healthy("objective/kl") == "not below -0.1, 30 at most"
    assert healthy("safety/loss") == "not 1.5 times its lowest again"
    assert healthy("val/padding") == ""
    for rule in RULES:
        assert f"{rule.limit:g}" in rule.healthy.format(limit=rule.limit) or "%" in rule.healthy


def test_a_watch_keeps_only_what_its_rules_read():
    watch = Watch(print)
    watch.look({"gen/eos_rate": 0.9, "reward/safety": 1.0, "heldout/reward_combined": 2.0, "step": 3.0})
    assert watch.rows == [{"gen/eos_rate": 0.9, "heldout/reward_combined": 2.0}]


def test_a_kl_that_has_run_away_is_not_taken_for_one_below_zero():
    [finding] = examine(rows("objective/kl", [0.0, 80.0]))
    assert "80 nats" in finding.sign
    tested = {name.removeprefix("sft/") for name in SICK} | {"heldout/gold_quality"}
    assert {rule.metric.lstrip("/") for rule in RULES} == tested
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize(
    ("gold", "reward", "alarms"),
    [
        ([0.5, 0.7, 0.6], [1.0, 2.0, 3.0], ["judge_disagrees"]),
        ([0.5, 0.7, 0.6], [1.0, 2.0, 1.5], []),  # both fell: bad luck or instability, but nobody was fooled
        ([0.5, 0.7, 0.68], [1.0, 2.0, 3.0], []),  # noise
        ([0.5, 0.6, 0.7], [1.0, 2.0, 3.0], []),
    ],
)
def test_a_judge_who_disagrees_with_the_reward(gold, reward, alarms):
    course = [{"heldout/gold_quality": g, "heldout/reward_combined": r} for g, r in zip(gold, reward, strict=True)]
    # Rows of training, which have neither, and a judge without a reward beside are passed over.
    course = [{"gen/length": 3.0}, *course, {"gen/length": 3.0}]
    assert [finding.name for finding in examine(course)] == alarms


def test_an_alarm_is_said_once_and_logged_while_it_lasts():
    said = []
    watch = Watch(said.append)
    rates = [0.9, 0.2, 0.3, 0.8]
    assert [watch.look({"gen/eos_rate": rate}) for rate in rates] == [
        {"health/alarms": 0.0},
        {"health/alarms": 1.0, "health/endless": 1.0},
        {"health/alarms": 1.0, "health/endless": 1.0},
        {"health/alarms": 0.0},
    ]
    [line] = said
    assert line.startswith("health/endless: only 20% of the answers end by themselves; ")
    again = Watch(said.append)
    again.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert again.look({"gen/eos_rate": 0.1})["health/endless"] == 1.0
    assert said == [line]


def test_the_slope_of_reward_over_length_by_hand():
    # lengths 1, 2, 3 deviate by -1, 0, 1 and scores 0, 3, 3 by -2, 1, 1: 3 / sqrt(2 * 6) = 0.866025
    assert length_slope([1, 2, 3], [0.0, 3.0, 3.0]) == pytest.approx(0.866025, abs=1e-6)
    assert length_slope([5, 5, 5], [0.0, 1.0, 2.0]) == length_slope([1, 2, 3], [1.0, 1.0, 1.0]) == 0.0
    with pytest.raises(ValueError, match="as many scores as lengths"):
        length_slope([1], [1.0])


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLHF_RUNS", raising=False)
    with open_artefact(tmp_path / "runs" / "tiny" / "sft", {"step": "sft", "inputs": {}}) as out:
        (out / "metrics.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows("sft/loss", WELL["sft/loss"]))
        )
        (out / "demonstrations.jsonl").write_text("{}\n")
    return tmp_path / "runs" / "tiny"


def test_the_doctor_finds_damage(runs, capsys):
    assert main(["doctor", "run"]) == 0
    assert capsys.readouterr().out == "ok  sft\nnothing found\n"
    (runs / "sft" / "demonstrations.jsonl").unlink()
    assert main(["doctor", "run"]) == 1
    assert "damaged: demonstrations.jsonl is missing\n     rlhf run stage=sft --rerun" in capsys.readouterr().out


def test_the_doctor_looks_at_a_step_that_is_not_finished(runs, capsys):
    (runs / ".ppo.partial").mkdir()
    name, values = next((name, values) for name, values in SICK.items() if name.startswith("objective/"))
    (runs / ".ppo.partial" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(name, values)))
    assert main(["doctor", "run"]) == 1
    said = capsys.readouterr().out
    assert f"ok  sft\n!   ppo, not finished\n     {name}: " in said
    assert "damaged" not in said


def test_the_doctor_says_where_a_secret_is_and_not_what(runs, capsys):
    assert main(["doctor", "secrets"]) == 0
    capsys.readouterr()
    secret = "hf_" + "Q" * 34
    (runs / "sft" / "note.txt").write_text(f"a\nmy token is {secret}\n")
    assert main(["doctor", "secrets"]) == 1
    out = capsys.readouterr().out
    assert "looks like a secret: runs/tiny/sft/note.txt:2" in out
    assert secret not in out


def test_the_doctor_knows_the_machine(runs, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "Z" * 34)
    assert main(["doctor", "env"]) == 0
    out = capsys.readouterr().out
    assert "torch" in out
    assert "Z" * 34 not in out


def test_samples_mark_what_changed_as_git_marks_words(runs, capsys):
    replies = {
        "sft": {"text": "take the pump .", "helpfulness": -1.0, "safety": 2.0},
        "ppo": {"text": "take the red pump .\x1b[2J", "helpfulness": 1.5, "safety": 2.5},
        "gatt": {"text": "take the red pump .\x1b[2J", "helpfulness": 1.5, "safety": 2.5},
    }
    sample = {"prompt": [{"role": "user", "content": "how ?"}], "kind": "safe", "replies": replies}
    assert main(["samples"]) == 69
    (runs / "report.json").write_text(json.dumps({"samples": [sample, sample]}))
    assert main(["samples", "show=1"]) == 0
    out = capsys.readouterr().out
    assert out.count("how ?  (safe)") == 1
    assert "take the {+red +}pump ." in out
    assert "helpfulness 1.50  safety 2.50" in out
    assert "  gatt           =\n" in out
    assert "\x1b" not in out


def test_diff_lists_the_settings_that_differ_and_no_others(runs, capsys):
    assert main(["diff", "tiny", "tiny"]) == 0
    assert capsys.readouterr().out == "no setting differs\n"
    assert main(["diff", "llama2-7b", "llama2-70b"]) == 0
    out = capsys.readouterr().out
    assert "\nppo.kl_coef " in out
    assert "\nppo.clip_range " not in out
    assert main(["diff", "tiny"]) == 2
