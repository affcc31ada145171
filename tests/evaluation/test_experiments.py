"""Verdicts over seeds, worked by hand; the table of claims is whole, and its arms are recipes that load."""

import json

import pytest

from benchmarks.claims import __main__ as runner
from benchmarks.claims.table import ARMS, TABLE
from rlhf.config import load
from rlhf.evaluation.experiments import Experiment, at, judge, lower_bound
from rlhf.planning.steps import expand

UP = Experiment("X", "it rises", "Fig 0", ("main",), {"gold": lambda arms: at(arms["main"], "policies/ppo/gold")})


def runs(*golds):
    return {seed: {"main": {"policies": {"ppo": {"gold": gold}}}} for seed, gold in enumerate(golds)}


def test_the_bound_by_hand():
    # Mean 2, s = 1, n = 3: 2 - 2.920 / sqrt(3) = .314.
    assert lower_bound([1.0, 2.0, 3.0]) == pytest.approx(0.314, abs=1e-3)
    # Mean 0, s^2 = 16 / 15, n = 16, t = 1.753 by the table of 15 degrees of freedom.
    assert lower_bound([-1.0, 1.0] * 8) == pytest.approx(-1.753 * (16 / 15 / 16) ** 0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("golds", "holds"),
    [
        ((1.0, 2.0, 3.0), True),
        ((0.0, 2.0, 3.0), False),  # mean 1.67, s 1.53: 1.67 - 2.58 < 0
        ((-1.0, -2.0, -3.0), False),
        ((1.0, 2.0), "untestable"),  # two seeds are no evidence
        ((1.0, 2.0, None), "untestable"),  # nor is a figure that is missing
    ],
)
def test_verdicts(golds, holds):
    assert judge(UP, runs(*golds))["holds"] is holds or judge(UP, runs(*golds))["holds"] == holds


def test_all_effects_have_to_show_and_exceed_the_least():
    both = Experiment("X", "c", "p", ("main",), {"up": UP.effects["gold"], "down": lambda arms: -1.0})
    assert judge(both, runs(5, 5, 5))["holds"] is False
    assert judge(Experiment("X", "c", "p", ("main",), UP.effects, least=4.9), runs(5, 5, 5))["holds"] is True
    assert judge(Experiment("X", "c", "p", ("main",), UP.effects, least=5.0), runs(5, 5, 5))["holds"] is False


def test_the_table_names_every_claim_once_and_every_arm_is_a_recipe():
    assert [e.id for e in TABLE if e.id.startswith("B")] == [f"B{n}" for n in range(1, 41)]
    for experiment in TABLE:
        assert set(experiment.arms) <= set(ARMS)
        assert bool(experiment.effects) != bool(experiment.why_not), experiment.id
        assert bool(experiment.effects) == bool(experiment.arms), experiment.id
    assert {arm for experiment in TABLE for arm in experiment.arms} == set(ARMS)
    for settings in ARMS.values():
        assert expand(load(str(runner.RECIPE), [*settings]).recipe)


def test_a_stage_that_an_arm_left_out_makes_its_claim_untestable():
    arms = {arm: {"stages": [{"name": "sft"}]} for arm in ARMS}
    for experiment in (e for e in TABLE if e.id in ("B36", "B37")):
        assert judge(experiment, dict.fromkeys(range(3), arms))["holds"] == "untestable"


def test_what_context_distillation_measured_is_read_beside_stages_without_results():
    found = {"score_after": 0.0, "change": {"mean": 1.0}}
    better = {"distill": {**found, "score_after": 0.5}}
    arms = {
        "generic": {"stages": [{"name": "base"}, {"name": "distill", "results": {"distill": found}}]},
        "category": {"stages": [{"name": "base"}, {"name": "distill", "results": better}]},
    }
    (experiment,) = (e for e in TABLE if e.id == "B36")
    found = judge(experiment, dict.fromkeys(range(3), arms))
    assert found["effects"] == {"generic": [1.0] * 3, "template": [0.5] * 3}


def test_an_arm_begins_with_the_finished_steps_of_another(tmp_path):
    for step, finished in (("base", True), ("sft", False)):
        (tmp_path / "main-0" / step).mkdir(parents=True)
        (tmp_path / "main-0" / step / "weights").write_text(step)
        if finished:
            (tmp_path / "main-0" / step / "manifest.json").write_text("{}")
    runner.take_over(tmp_path / "main-0", tmp_path / "no-kl-0")
    assert (tmp_path / "no-kl-0" / "base" / "weights").read_text() == "base"
    assert not (tmp_path / "no-kl-0" / "sft").exists()


def test_verdicts_are_kept_and_shown(tmp_path):
    verdicts = {"B1": {"claim": "a < b", "holds": True, "figure": "f", "evidence": "e"}}
    runner.write(tmp_path, verdicts)
    assert runner.read(tmp_path / "report.json") == verdicts
    assert json.loads((tmp_path / "report.json").read_text())["claims"] == verdicts
    assert "a &lt; b</td><td>holds" in (tmp_path / "claims.html").read_text()
