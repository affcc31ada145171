"""What a run was made with is told by its manifests, whatever is typed today."""

import json

import pytest

from rlhf import report
from rlhf.cli import main
from rlhf.config import load
from rlhf.provenance.manifests import as_made, manifests, outside_the_sections
from rlhf.schema import Recipe


def finish(run_dir, name, made: Recipe, minute: int, sections: list[str]) -> None:
    folder = run_dir / name
    folder.mkdir(parents=True)
    dumped = made.model_dump(mode="json")
    shared = {key: dumped[key] for key in ("seed", "model", "microworld")}
    manifest = {
        "config": {**shared, **{section: dumped[section] for section in sections}},
        "recipe": outside_the_sections(made),
        "finished_at": f"2026-01-01T00:{minute:02d}:00+00:00",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def run_dir(tmp_path):
    """A run of two steps: sft with seed 3, then ppo with a kl_coef of its own."""
    made = load("tiny", ["seed=3", "rounds=2", "sft.epochs=7", "ppo.kl_coef=0.5"]).recipe
    finish(tmp_path / "tiny", "sft", made, 1, sections=["sft"])
    finish(tmp_path / "tiny", "ppo", made.model_copy(update={"threads": 1}), 2, sections=["ppo"])
    return tmp_path / "tiny"


def test_settings_of_finished_steps_are_those_they_were_made_with(run_dir):
    today = Recipe.model_validate({"run": "tiny", "seed": 9, "rounds": 5, "ppo": {"kl_coef": 0.1}, "gatt": {"cuts": 9}})
    made = as_made(run_dir, today)
    assert (made.seed, made.rounds, made.threads, made.sft.epochs, made.ppo.kl_coef) == (3, 2, 1, 7, 0.5)
    assert made.gatt.cuts == 9  # gatt was never made: today's word stands
    assert list(manifests(run_dir)) == ["sft", "ppo"]


@pytest.mark.parametrize("whole", [True, False])
def test_settings_that_go_together_are_taken_together(tmp_path, whole):
    """A context of 64 tokens is too short for the default answers of 512, whichever section is read first."""
    short = {stage: {"max_new_tokens": 9} for stage in ("preferences", "rejection", "gatt", "ppo", "evaluate")}
    base = {"row_length": 60, "extension_length": 62}
    made = Recipe.model_validate({"run": "tiny", "model": {"max_length": 64}, "base": base, **short})
    stages = made.stages if whole else ("base",)
    for minute, step in enumerate(stages):
        finish(tmp_path / "tiny", step, made, minute, sections=[step])
    found = as_made(tmp_path / "tiny", Recipe(run="tiny"))
    assert (found.model.max_length, found.base.row_length, found.stages) == (64, 60, stages)
    assert found.ppo.max_new_tokens == (9 if whole else 512)


def test_of_two_rounds_the_newest_has_the_word(run_dir):
    later = Recipe.model_validate({"run": "tiny", "seed": 4, "ppo": {"kl_coef": 0.7}})
    finish(run_dir, "ppo-2", later, 3, sections=["ppo"])
    assert (as_made(run_dir, later).seed, as_made(run_dir, Recipe(run="tiny")).ppo.kl_coef) == (4, 0.7)


@pytest.mark.parametrize("text", ["{", "[]", '{"config": {"ppo": {"gone": 1, "kl_coef": -3}}, "recipe": 5}'])
def test_a_manifest_of_another_schema_leaves_todays_settings(run_dir, text):
    (run_dir / "other").mkdir()
    (run_dir / "other" / "manifest.json").write_text(text)
    assert as_made(run_dir, Recipe(run="tiny")).ppo.kl_coef == 0.5


def test_the_report_shows_what_was_made_not_what_is_typed(run_dir, capsys):
    typed = ["report", f"runs_dir={run_dir.parent}", "seed=8", "rounds=4", "ppo.kl_coef=0.9", "gatt.dialogues=11"]
    assert main(typed) == 0
    written = json.loads((run_dir / "report.json").read_text())
    config = written["config"]
    assert (config["seed"], config["rounds"], config["ppo"]["kl_coef"]) == (3, 2, 0.5)
    assert config["gatt"]["dialogues"] == 11
    assert "rejection-2" in [stage["artefact"] for stage in written["stages"]]
    assert "rejection-3" not in [stage["artefact"] for stage in written["stages"]]


def test_the_page_says_where_such_a_setting_came_from(run_dir, monkeypatch):
    seen = {}
    monkeypatch.setattr("rlhf.reporting.page.draw", lambda report, text, shown, metrics: seen.update(shown=shown) or "")
    today = Recipe(run="tiny", seed=8)
    report.write(run_dir, today, [], origins={"seed": "command line", "gatt.cuts": "tiny.yaml"})
    origins = {name: origin for name, _, origin in seen["shown"]}
    assert (origins["seed"], origins["gatt.cuts"]) == ("the run's manifests", "tiny.yaml")
