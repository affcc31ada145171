"""Verdicts over seeds, worked by hand; the table of claims is whole, and its arms are steps of the default recipe."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.claims import __main__ as runner
from benchmarks.claims import make
from benchmarks.claims.arms import ARMS, Arm
from benchmarks.claims.table import TABLE
from rlhf.config import load, merge, split
from rlhf.data.conversations import Without
from rlhf.errors import MissingError, RlhfError
from rlhf.evaluation.experiments import Experiment, Share, at, judge, least_share, lower_bound
from rlhf.microworld.dialogues import LISTS
from rlhf.microworld.instructions import STYLE_WORDS
from rlhf.planning.steps import expand
from rlhf.reporting.page import draw_claims
from rlhf.schema import Recipe


def in_a_thread(call):
    """The browser of other tests leaves an event loop in the main thread, and there can be no second one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


UP = Experiment(
    "X", "it rises", "Fig 0", ("main",), {"gold": lambda arms: at(arms["main"], "evaluate/policies/ppo/gold")}
)


def runs(*golds):
    return {seed: {"main": {"evaluate": {"policies": {"ppo": {"gold": gold}}}}} for seed, gold in enumerate(golds)}


def test_the_bound_by_hand():
    # Mean 2, s = 1, n = 3: 2 - 2.920 / sqrt(3) = .314.
    assert lower_bound([1.0, 2.0, 3.0]) == pytest.approx(0.314, abs=1e-3)
    # Mean 0, s^2 = 16 / 15, n = 16, t = 1.753 by the table of 15 degrees of freedom.
    assert lower_bound([-1.0, 1.0] * 8) == pytest.approx(-1.753 * (16 / 15 / 16) ** 0.5, abs=1e-3)


def test_the_bound_of_a_share_by_hand():
    """All of n: the share whose n-th power is .05. None of n: nothing. And by the sum of the binomial's tail."""
    assert least_share(59, 59) == pytest.approx(0.05 ** (1 / 59))
    assert least_share(0, 59) == 0.0
    low = least_share(57, 60)
    assert sum(math.comb(60, k) * low**k * (1 - low) ** (60 - k) for k in (57, 58, 59, 60)) == pytest.approx(0.05)


@pytest.mark.parametrize(("counts", "holds"), [((20, 20, 20), True), ((20, 20, 19), False), ((20, 20, 18), False)])
def test_a_share_has_to_be_beyond_the_error_of_its_draws(counts, holds):
    """60 of 60 are above .95 at least .951; with one miss fewer than .924 are sure."""
    share = Share(lambda arms: (int(at(arms["main"], "evaluate/policies/ppo/gold")), 20), 0.95)
    assert judge(Experiment("X", "c", "p", ("main",), UP.effects, {"kept": share}), runs(*counts))["holds"] is holds


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


def test_a_claim_that_runs_test_by_themselves_has_to_hold_in_every_seed():
    itself = Experiment("B1", "c", "Table 0", ("main",), by_itself=True)

    def seeds(*held):
        found = [{"holds": h, "figure": f"f{i}", "evidence": "e"} for i, h in enumerate(held)]
        return {i: {"main": {"evaluate": {"claims": {"B1": claim}}}} for i, claim in enumerate(found)}

    held = judge(itself, seeds(True, True, True))
    assert held["holds"] is True
    assert held["figure"] == "seed 0: f0 | seed 1: f1 | seed 2: f2"
    assert judge(itself, seeds(True, False, True))["holds"] is False
    assert judge(itself, seeds(True, "untestable", True))["holds"] == "untestable"
    assert judge(itself, {**seeds(True, True, True), 2: {"main": {}}})["holds"] == "untestable"
    assert judge(itself, seeds(True, True))["holds"] == "untestable"


def test_the_table_names_every_claim_once_and_every_arm_makes_steps_of_the_recipe_again():
    assert [e.id for e in TABLE if e.id.startswith("B")] == [f"B{n}" for n in range(1, 41)]
    for experiment in TABLE:
        assert set(experiment.arms) <= set(ARMS)
        assert bool(experiment.effects or experiment.by_itself) != bool(experiment.why_not), experiment.id
        assert bool(experiment.effects or experiment.by_itself) == bool(experiment.arms), experiment.id
    used = {arm for experiment in TABLE for arm in experiment.arms}
    assert used | {ARMS[arm].like for arm in used if ARMS[arm].like} == set(ARMS)
    for arm in ARMS.values():
        settings = [setting.replace("{run}", "runs/a") for setting in arm.settings]
        steps = [step.name for step in expand(load("tiny", settings).recipe)]
        assert [name for name in steps if name in arm.again] == list(arm.again)


def test_held_out_combinations_are_of_words_and_positions_that_are_left_in_others():
    """Of 12 words, two positions and 4 roles: 4 words to start with and 4 others to end with are left out."""
    recipe = load("tiny", list(ARMS["combinations"].settings)).recipe
    starts = {f"always start with {word}" for word in ("lantern", "amber", "hazel", "raven")}
    ends = {f"always end with {word}" for word in ("pebble", "cedar", "maple", "tulip")}
    assert set(recipe.gatt.unseen) == set(recipe.evaluate.unseen) == starts | ends
    assert recipe.evaluate.dialogues >= 60
    assert {1, 6, 20} <= set(recipe.evaluate.turns)
    rng, allowed = random.Random(0), Without(LISTS, recipe.gatt.unseen)
    seen = {allowed.draw(rng).text for _ in range(2000)}
    assert len(seen) == 12 * 2 + 4 - 8
    for word in STYLE_WORDS:
        left = {f"always {position} with {word}" for position in ("start", "end")} & seen
        assert len(left) == (2 if word in ("comet", "ember", "pearl", "willow") else 1)


def table(name, arms):
    """The verdict on a claim of the table, the same reports under three seeds."""
    (experiment,) = (e for e in TABLE if e.id == name)
    return judge(experiment, dict.fromkeys(range(3), arms))


def turns(arm, n=64, **rates):
    """What an arm's evaluation of dialogues left: after={20: .97}."""
    by_turn = {name: {str(turn): rate for turn, rate in found.items()} for name, found in rates.items()}
    return {arm: {"evaluate": {"multi_turn": {"n": n, "changed_n": n, **by_turn}}}}


@pytest.mark.parametrize(
    ("after", "before", "holds"),
    [
        (63 / 64, 0.1, True),  # 189 of 192: at least .960
        (62 / 64, 0.1, False),  # 186 of 192: at least .939
        (63 / 64, 0.99, False),
    ],
)
def test_held_out_combinations_are_kept_to_turn_20(after, before, holds):
    arms = turns("combinations", unseen_after={20: after}, unseen_before={20: before})
    assert table("combinations", arms)["holds"] is holds


@pytest.mark.parametrize(
    ("unseen", "after", "reward", "gold", "holds"),
    [
        (63 / 64, 1.0, 1.8, 0.8, True),
        (62 / 64, 1.0, 1.8, 0.8, False),  # 186 of 192: at least .939
        (63 / 64, 62 / 64, 1.8, 0.8, False),
        (63 / 64, 1.0, 1.4, 0.8, False),  # .2 of the reward is lost
        (63 / 64, 1.0, 1.8, 0.7, False),
    ],
)
def test_queries_and_keys_alone_have_to_keep_combinations_and_what_single_prompts_had(
    unseen, after, reward, gold, holds
):
    arms = turns("combinations", unseen_after={20: 0.7}) | turns(
        "looking", unseen_after={20: unseen}, after={20: after}
    )
    before = {"reward_combined": 1.6, "gold_quality": 0.75}
    found = {"rejection-3": before, "gatt": {"reward_combined": reward, "gold_quality": gold}}
    arms["looking"]["evaluate"]["policies"] = found
    assert table("looking", arms)["holds"] is holds


@pytest.mark.parametrize(
    ("before", "after", "holds"),
    [
        ({1: 0.9, 6: 0.1, 20: 0.5}, 1.0, True),
        ({1: 0.75, 6: 0.1, 20: 0.5}, 1.0, False),  # what was never followed cannot be forgotten
        ({1: 0.9, 6: 0.25, 20: 0.0}, 1.0, False),  # nor kept what was not forgotten by turn 6
        ({1: 0.9, 6: 0.1, 20: 0.5}, 0.9375, False),
    ],
)
def test_what_is_kept_was_lost_without_ghost_attention(before, after, holds):
    assert table("kept", turns("steady", 96, before=before, after={20: after}))["holds"] is holds


@pytest.mark.parametrize(
    ("at_once", "at_the_end", "plain", "holds"),
    [(1.0, 1.0, 0.1, True), (0.9, 1.0, 0.1, False), (1.0, 0.9, 0.1, False), (1.0, 1.0, 1.0, False)],
)
def test_a_change_is_followed_at_once_and_to_the_end(at_once, at_the_end, plain, holds):
    changing = turns("changing", changed_after={11: at_once, 20: at_the_end})
    assert table("changed", changing | turns("steady", changed_after={11: plain, 20: plain}))["holds"] is holds


def scaling(none, all_of):
    """Figures with no safety data, and with all: (safety, helpfulness, borderline refused, ordinary refused)."""

    def of(safety, helpfulness, borderline, ordinary):
        refused = {"borderline": borderline, "ordinary": ordinary}
        return {"reward_safety": safety, "gold_helpfulness": helpfulness, "false_refusal": refused}

    return {"scaling": {"scaling": {"safety_scaling": {"0": of(*none), "1": of(*all_of)}}}}


@pytest.mark.parametrize(
    ("name", "all_of", "holds"),
    [
        ("B34", (2.0, 0.92, 0.0, 0.0), True),
        ("B34", (0.5, 0.92, 0.0, 0.0), False),  # the score falls
        ("B34", (2.0, 0.84, 0.0, 0.0), False),  # helpfulness is given up,
        ("B34", (2.0, 0.96, 0.0, 0.0), False),  # or gained: flat is neither
        ("B35", (2.0, 0.9, 0.2, 0.02), True),
        ("B35", (2.0, 0.9, 0.0, 0.02), False),
        ("B35", (2.0, 0.9, 0.2, 0.06), False),
    ],
)
def test_what_safety_data_do(name, all_of, holds):
    assert table(name, scaling((1.0, 0.9, 0.0, 0.0), all_of))["holds"] is holds


def evaluated(arm, **policies):
    """Figures of an arm's policies: ppo={"gold_quality": .9}."""
    return {arm: {"evaluate": {"policies": policies}}}


@pytest.mark.parametrize(
    ("name", "path", "up", "down"),
    [  # the claim holds where the first arm's figure is above the second's, and not the other way round
        ("B2", ("reward", "significantly"), ("run", "large-margin"), ("no-margin",)),
        ("B6", ("reward", "both_safe"), ("run",), ("no-helpfulness",)),
        ("B17", ("rejection-3", "instruction_followed"), ("run",), ("last-pool",)),
        ("B38", ("distill", "borderline"), ("on-all-prompts",), ("category",)),
    ],
)
def test_the_arm_that_is_said_to_win_has_to(name, path, up, down):
    def report(value):
        helpful = {"helpfulness": {"accuracy": {"significantly": value}}}
        safe = {"safety": {"by_safety": {"both_safe": {"accuracy": value}}}}
        figures = {"instruction_followed": value, "false_refusal": {"borderline": value}}
        return {
            "reward-1": {"reward_models": {"helpfulness": helpful, "safety": safe}},
            "evaluate": {"policies": {path[0]: figures}},
        }

    better = dict.fromkeys(up, report(0.8)) | dict.fromkeys(down, report(0.6))
    worse = dict.fromkeys(up, report(0.6)) | dict.fromkeys(down, report(0.8))
    assert table(name, better)["holds"] is True
    assert table(name, worse)["holds"] is False


def ended(**arms):
    """What the last check of each arm's PPO saw: (KL, reward)."""
    found = {name: {"kl": kl, "reward_combined": reward} for name, (kl, reward) in arms.items()}
    return {name.replace("_", "-"): {"ppo": {"heldout": check}} for name, check in found.items()}


@pytest.mark.parametrize(
    ("name", "arms", "holds"),
    [
        ("B21", ended(brief=(0.1, 1.0), small_kl=(0.2, 1.1)), True),
        ("B21", ended(brief=(0.1, 1.0), small_kl=(0.2, 0.9)), False),
        ("B21", ended(brief=(0.2, 1.0), small_kl=(0.1, 1.1)), False),
        # A factor of 1.7 is .23 powers of ten, one of 1.5 is .18; it counts in either direction.
        ("B22", ended(brief=(0.1, 0), ten_times=(0.1, 0), raw=(0.1, 0), raw_ten_times=(0.17, 0)), True),
        ("B22", ended(brief=(0.1, 0), ten_times=(0.1, 0), raw=(0.1, 0), raw_ten_times=(0.15, 0)), False),
        ("B22", ended(brief=(0.1, 0), ten_times=(0.06, 0), raw=(0.1, 0), raw_ten_times=(0.17, 0)), False),
        ("B22", ended(brief=(0.1, 0), ten_times=(0.1, 0), raw=(0.0, 0), raw_ten_times=(0.17, 0)), "untestable"),
    ],
)
def test_what_ppo_pays_is_read_at_its_end(name, arms, holds):
    assert table(name, arms)["holds"] == holds


def test_the_last_check_of_held_out_prompts_is_read_as_it_was_logged(tmp_path):
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo" / "results.json").write_text('{"best_iteration": 0}')
    rows = [{"step": 0, "heldout/kl": 0.0}, {"step": 30, "heldout/kl": 0.2, "health/alarms": 0}, {"step": 31, "x": 1}]
    (tmp_path / "ppo" / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "results.json").write_text('{"n": 1}')
    assert make.results(tmp_path) == {
        "ppo": {"best_iteration": 0, "heldout": {"kl": 0.2}},
        "sft": {"n": 1, "heldout": {}},
    }


@pytest.mark.parametrize(
    ("name", "arms", "other"),
    [
        ("B29", turns("unchecked", after={20: 1.0}), turns("all-answers", after={20: 0.9})),
        ("B29", turns("unchecked", after={20: 0.9}), turns("all-answers", after={20: 1.0})),
        ("B30", turns("no-roles", unseen_after={20: 0.5}, unseen_before={20: 0.1}), {}),
        ("B30", turns("no-roles", unseen_after={20: 0.1}, unseen_before={20: 0.5}), {}),
        ("B32", evaluated("run", gatt={"reward_combined": 0.95}, **{"rejection-3": {"reward_combined": 1.0}}), {}),
        ("B32", evaluated("run", gatt={"reward_combined": 0.85}, **{"rejection-3": {"reward_combined": 1.0}}), {}),
        ("B23", evaluated("brief", ppo={"violation_rate": 0.2, "gold_helpfulness": 0.9}),
         evaluated("helpfulness-only", ppo={"violation_rate": 1.0, "gold_helpfulness": 0.93})),
        ("B23", evaluated("brief", ppo={"violation_rate": 0.2, "gold_helpfulness": 0.9}),
         evaluated("helpfulness-only", ppo={"violation_rate": 1.0, "gold_helpfulness": 0.96})),
    ],
)  # fmt: skip
def test_the_sign_and_the_least_effect_of_a_claim(name, arms, other, request):
    """Of each pair the first holds, the second does not."""
    first = request.node.callspec.indices["name"] % 2 == 0
    assert table(name, arms | other)["holds"] is first


def test_a_step_that_an_arm_left_out_makes_its_claim_untestable():
    arms = {arm: {"sft": {}} for arm in ARMS}
    for experiment in (e for e in TABLE if e.id in ("B2", "B36", "B37")):
        assert judge(experiment, dict.fromkeys(range(3), arms))["holds"] == "untestable"


def test_what_context_distillation_measured_is_read():
    found = {"score_after": 0.0, "change": {"mean": 1.0}}
    arms = {
        "generic": {"base": {}, "distill": {"distill": found}},
        "category": {"base": {}, "distill": {"distill": {**found, "score_after": 0.5}}},
    }
    (experiment,) = (e for e in TABLE if e.id == "B36")
    found = judge(experiment, dict.fromkeys(range(3), arms))
    assert found["effects"] == {"generic": [1.0] * 3, "template": [0.5] * 3}


@pytest.mark.parametrize(
    ("refreshed", "stale", "holds"),
    [
        ((0.70, 0.75, 0.80), (0.70, 0.72, 0.66), True),  # stale rounds add .02 and -.06
        ((0.70, 0.75, 0.74), (0.70, 0.72, 0.66), False),  # the third adds nothing
        ((0.70, 0.75, 0.80), (0.70, 0.72, 0.78), False),  # the third adds .06 without fresh reward models
    ],
)
def test_rounds_add_gold_quality_with_fresh_reward_models_only(refreshed, stale, holds):
    def report(golds):
        policies = {f"rejection-{number}": {"gold_quality": gold} for number, gold in enumerate(golds, 1)}
        return {"evaluate": {"policies": policies}}

    (experiment,) = (e for e in TABLE if e.id == "refresh")
    arms = {"run": report(refreshed), "no-refresh": report(stale)}
    found = judge(experiment, dict.fromkeys(range(3), arms))
    assert found["holds"] is holds
    assert found["effects"]["round 2, not, below .05"] == pytest.approx([0.03] * 3)


def test_an_arm_without_refresh_links_the_first_reward_models_only(tmp_path):
    for step in (step.name for step in expand(load("tiny").recipe)):
        (tmp_path / "run" / step).mkdir(parents=True)
        (tmp_path / "run" / step / "manifest.json").write_text("{}")
    recipe = load("tiny", list(ARMS["no-refresh"].settings)).recipe
    make.begin(tmp_path / "arm", ARMS["no-refresh"], recipe, tmp_path / "run")
    linked = {path.name for path in (tmp_path / "arm").iterdir()}
    assert {name for name in linked if name.startswith(("preferences", "reward"))} == {"preferences-1", "reward-1"}
    assert {"base", "rejection-1"} <= linked


def test_an_arm_begins_with_what_its_steps_read(tmp_path):
    """That of the arm before it, else that of the run, linked anew; its own steps are left to the pipeline."""
    made = ["run/sft", "run/preferences-1", "run/reward-1", "run/ppo", "small/sft"]
    for place, step in (name.split("/") for name in made):
        (tmp_path / place / step).mkdir(parents=True)
        (tmp_path / place / step / "manifest.json").write_text("{}")
        (tmp_path / place / step / "weights").write_text(place)
    arm, folder = ARMS["small-reward"], tmp_path / "arm"
    recipe = Recipe.model_validate(merge(load("tiny").recipe.model_dump(mode="json"), dict(map(split, arm.settings))))
    (folder / "reward-1").mkdir(parents=True)  # its own, half done
    (folder / "evaluate").mkdir()  # what an arm of this name once made
    for _ in range(2):
        make.begin(folder, arm, recipe, tmp_path / "small", tmp_path / "run")
        assert {path.name for path in folder.iterdir()} == {"sft", "preferences-1", "reward-1"}
        wanted = {"sft": "small", "preferences-1": "run"}
        assert {path.parent.name: path.read_text() for path in folder.glob("*/weights")} == wanted
        (folder / "sft" / "weights").unlink()
        (folder / "sft" / "weights").write_text("of an earlier run")


def test_a_missing_run_is_made_with_the_seed_of_its_name_and_a_finished_one_is_left_alone(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(make.pipeline, "run_recipe", lambda recipe, run: asked.append((recipe, run)))
    make.make("run", tmp_path / "tiny-07", tmp_path, ["rounds=1"])
    ((recipe, run),) = asked
    assert (recipe.seed, recipe.rounds, recipe.run, run) == (7, 1, "tiny-07", tmp_path / "tiny-07")
    with pytest.raises(MissingError, match="mine has no finished step"):
        make.make("run", tmp_path / "mine", tmp_path, [])
    for step in (step.name for step in expand(recipe)):
        assert len(asked) == 1 or asked[-1][0].seed == 5  # of the steps that there are, not of the name
        (run / step).mkdir(parents=True)
        (run / step / "manifest.json").write_text(json.dumps({"recipe": {"seed": 5, "rounds": 1}}))
        make.make("run", run, tmp_path, [])
    assert len(asked) == len(expand(recipe))  # once for the empty folder, and after every step but the last


# ── the arms of all runs on all cores ────────────────────────────────────────────────────────────────────────────────

TOY_ARM = """
import json, sys, time
from pathlib import Path

from benchmarks.claims.make import DONE

_, out, _, fails = sys.argv[1:]


def make(name, run, out):
    seed = int(run.name[-1])
    made = {"run": run, **{arm: out / run.name / arm for arm in ("first", "second")}}
    if (made[name] / "ppo" / "results.json").exists():
        print("skip")
        return
    assert name == "run" or (made[{"first": "run", "second": "first"}[name]] / "ppo" / "results.json").exists()
    print("begin", flush=True)
    time.sleep(0.2)
    if name == fails:
        sys.exit("error: no luck")
    (made[name] / "ppo").mkdir(parents=True)
    (made[name] / "ppo" / "manifest.json").write_text(json.dumps({"recipe": {"seed": seed}, "fingerprint": name}))
    (made[name] / "ppo" / "results.json").write_text(json.dumps({"gold": 2 * seed + 1 if name == "second" else seed}))
    print("end", flush=True)
    sys.stderr.write("not ended")


for line in sys.stdin:
    name, run = line.split()
    make(name, Path(run), Path(out))
    print(DONE, flush=True)
"""


@pytest.fixture
def toys(tmp_path, monkeypatch, capfd):
    """What `make claims` says over three seeds of toy arms: toys(jobs=2, fails="second")."""
    toy_arms = {"run": Arm(), "first": Arm(("sft",)), "second": Arm(("ppo",), like="first")}
    gained = {"gold": lambda reports: at(reports["second"], "ppo/gold") - at(reports["run"], "ppo/gold")}
    rises = Experiment("X", "it rises", "Fig 0", ("run", "second"), gained)
    ours = Experiment("Z", "it may rise", "3.3", ("run", "first"), {"gold": lambda reports: 1.0})
    (tmp_path / "arm.py").write_text(TOY_ARM)
    dark = Experiment("Y", "none can tell", "Fig 1", why_not="it is dark")
    for name, table in (("TABLE", (rises, dark, ours)), ("PAPERS", (rises, dark)), ("OURS", (ours,))):
        monkeypatch.setattr(runner, name, table)
    monkeypatch.setattr(runner, "ARMS", toy_arms)
    monkeypatch.setattr(make, "ARMS", toy_arms)
    monkeypatch.setattr(runner, "WORKER", (sys.executable, str(tmp_path / "arm.py")))
    monkeypatch.setenv("PYTHONPATH", str(Path(runner.__file__).parents[2]))

    def claims(jobs, fails="none", only=()):
        runs = [str(tmp_path / f"tiny-{seed}") for seed in range(3)]
        words = [*only, "--runs", *runs, "--out", str(tmp_path / "claims"), "--jobs", str(jobs), "--set", fails]
        monkeypatch.setattr("sys.argv", ["claims", *words])
        try:
            in_a_thread(runner.main)
        finally:
            said = capfd.readouterr().out
            (tmp_path / "said").write_text(said)
        return said.splitlines()

    return claims


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_arm_of_every_run_is_made_once_after_what_it_is_made_from(toys, tmp_path, jobs):
    lines = toys(jobs)
    verdicts = [line for line in lines if line.startswith(("X:", "Y:"))]
    # Golds 1, 3, 5 minus 0, 1, 2; the bound of 1, 2, 3 is worked by hand above.
    assert verdicts[0].startswith("Y: untestable: none can tell")
    assert verdicts[1].startswith("X: holds: it rises. gold +2.000 (+1.000, +2.000, +3.000; lower bound +0.314)")
    told = [re.fullmatch(r"(tiny-[012]/(?:run|first|second))  (begin|end|not ended)", line) for line in lines]
    assert sum(found is not None for found in told) == len(lines) - 2 == 3 * 9
    under_way, most, ended = set(), 0, []
    for name, what in (found.groups() for found in told if found and found[2] != "not ended"):
        (under_way.add if what == "begin" else under_way.remove)(name)
        most = max(most, len(under_way))
        ended += [name] if what == "end" else []
    assert most == jobs  # processes, each of which makes one arm after another
    report = (tmp_path / "claims" / "report.json").read_text()
    assert sorted(toys(jobs)) == sorted([*verdicts, *(f"{name}  skip" for name in ended)])
    assert (tmp_path / "claims" / "report.json").read_text() == report
    assert list(json.loads(report)["claims"]) == ["X", "Y"]


def test_ours_are_asked_for_by_that_name_and_all_by_theirs(toys, tmp_path):
    place = tmp_path / "claims" / "report.json"
    assert any(line.startswith("Z: ") for line in toys(2, only=["ours"]))
    assert list(runner.read(place)) == ["Z"]
    assert not (tmp_path / "claims" / "tiny-0" / "second").exists()
    toys(2)
    assert list(runner.read(place)) == ["X", "Y", "Z"]
    place.unlink()
    toys(2, only=["all"])
    assert list(runner.read(place)) == ["X", "Y", "Z"]
    with pytest.raises(SystemExit, match=r"no claim W; claims: X, Y, Z, ours, all"):
        toys(2, only=["W"])


def test_the_page_counts_verdicts_in_words(toys, tmp_path):
    toys(2)
    page = (tmp_path / "claims" / "claims.html").read_text()
    assert "1 holds, 1 not tested" in page
    claim = {"claim": "c", "holds": True, "figure": "f", "evidence": "e"}
    several = {"X": claim, "Y": claim, "Z": claim | {"holds": False}}
    assert "2 hold, 1 does not hold" in draw_claims(several, ["a"])
    assert "1 holds, 2 do not hold" in draw_claims(several | {"Y": claim | {"holds": False}}, ["a"])


def test_the_page_draws_what_safety_data_buy_and_cost_once_that_was_judged(tmp_path):
    verdict = {"claim": "c", "holds": True, "figure": "f", "evidence": "e"}
    for seed in (3, 4):
        (place := tmp_path / f"tiny-{seed}" / "scaling" / "scaling").mkdir(parents=True)
        rows = {share: {"gold_helpfulness": 0.5, "violation_rate": 0.9 - float(share)} for share in ("0", "0.5")}
        (place / "results.json").write_text(json.dumps({"safety_scaling": rows}))
    for name, charts in (("B34", 2), ("B1", 0)):
        runner.write(tmp_path, {name: verdict}, [f"runs/tiny-{seed}" for seed in (3, 4, 5)])
        page = (tmp_path / "claims.html").read_text()
        assert page.count("<svg") == charts
        assert [f"What safety data buys and costs: tiny-{seed}" in page for seed in (3, 4, 5)] == [charts > 0] * 2 + [
            False
        ]
        ids = re.findall(r' id="([^"]+)"', page)
        assert len(ids) == len(set(ids))


def test_a_verdict_on_runs_that_were_made_again_since_is_dropped(toys, tmp_path):
    place = tmp_path / "claims" / "report.json"
    toys(2)
    toys(2, only=["Y"])
    assert list(runner.read(place)) == ["X", "Y"]
    (tmp_path / "tiny-1" / "ppo" / "manifest.json").write_text(
        json.dumps({"recipe": {"seed": 1}, "fingerprint": "new"})
    )
    toys(2, only=["Y"])
    assert list(runner.read(place)) == ["Y"]


def test_a_verdict_on_arms_with_other_settings_is_dropped(toys, tmp_path, monkeypatch):
    """Also of an arm that comes before one of its own."""
    place = tmp_path / "claims" / "report.json"
    toys(2)
    monkeypatch.setitem(runner.ARMS, "first", Arm(("sft",), ("sft.epochs=3",)))
    toys(2, only=["Y"])
    assert list(runner.read(place)) == ["Y"]


def test_where_an_arm_fails_the_others_stop_and_what_is_finished_is_kept(toys, tmp_path):
    with pytest.raises(RlhfError, match=r"tiny-[012]/second failed: its process ended with 1") as failed:
        toys(2, fails="second")
    assert f"{failed.value.what.split()[0]}  error: no luck" in (tmp_path / "said").read_text()
    assert any(line.startswith("X: holds") for line in toys(2))


HANG = """
import os, signal, sys, time
from benchmarks.claims import __main__ as runner, make

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever began the tests in the background has it ignored

def hang(name, run, out, settings):
    run.mkdir()
    (run / "began").write_text(str(os.getpid()))
    time.sleep(60)

make.make, runner.WORKER = hang, (sys.executable, __file__, "worker")
if sys.argv[1] == "worker":
    del sys.argv[1]
    make.main()
else:
    runner.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_or_killed_it_leaves_no_process_behind(tmp_path, number):
    (tmp_path / "hang.py").write_text(HANG)
    runs = [tmp_path / f"tiny-{seed}" for seed in range(3)]
    words = ["B14", "--runs", *runs, "--out", tmp_path / "claims", "--jobs", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(runner.__file__).parents[2])}
    deadline = time.monotonic() + 60
    with subprocess.Popen(
        [sys.executable, tmp_path / "hang.py", *words], env=environment, stderr=subprocess.DEVNULL
    ) as process:
        began = [run / "began" for run in runs[:2]]
        try:
            while not all(path.exists() and path.read_text() for path in began):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(number)
            process.wait(60)
        finally:
            process.kill()
    for path in began:
        words = Path(f"/proc/{path.read_text()}/cmdline")  # empty, once it is only waited for
        while words.exists() and words.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert not runs[2].exists()


def test_claims_are_named_with_commas(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["claims", "B33,B39", "--out", str(tmp_path)])
    assert in_a_thread(runner.main) == 0
    assert list(runner.read(tmp_path / "report.json")) == ["B33", "B39"]
    assert "B39: untestable" in capsys.readouterr().out


def test_verdicts_are_kept_and_shown(tmp_path):
    verdicts = {"B1": {"claim": "a < b", "holds": True, "figure": "f", "evidence": "e"}}
    runner.write(tmp_path, verdicts, ["runs/tiny-3"])
    assert runner.read(tmp_path / "report.json") == verdicts
    assert json.loads((tmp_path / "report.json").read_text())["claims"] == verdicts
    assert "| B1 | a < b | holds | f | e |" in (tmp_path / "claims.md").read_text()
    page = (tmp_path / "claims.html").read_text()
    assert "runs/tiny-3" in page
    assert "1 holds" in page
    assert "a &lt; b" in page
