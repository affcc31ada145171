"""The pipeline on stages of three lines each: what runs, what is skipped, why, and what a killed run leaves.

The stages write what they read and were told, so that an artefact shows what went into it.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from rlhf import pipeline
from rlhf.checkpoint import read_manifest, verify
from rlhf.errors import ConfigError, DiskError, LockedError, MissingError, PreemptedError, RlhfError
from rlhf.planning.steps import Stage, expand, select
from rlhf.provenance import fingerprint
from rlhf.schema import STAGES, Recipe

STAGE = """
def run(job):
    inputs = [path.name + ":" + (path / "text").read_text() for token in job.reads for path in job.every(token)]
    (job.out / "text").write_text(f"{job.name} {CONFIG} ({' '.join(inputs)})")
    job.track.log({"loss": 1.0}, step=0)
"""

READS = {
    "base": (),
    "sft": ("base",),
    "preferences": ("policies",),
    "reward": ("policy", "preferences*"),
    "rejection": ("base", "policy", "reward", "rejection*"),
    "distill": ("policy", "reward"),
    "gatt": ("policy", "reward"),
    "ppo": ("policy", "reward"),
    "scaling": ("base", "reward", "rejection*"),
    "evaluate": ("policies", "reward*", "preferences*"),
}
SETTING = {"ppo": "job.config.kl_coef", "reward": "job.config.margin"}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A run folder, a table of fake stages in a package of its own, and the recipe they are run by."""
    return World(tmp_path, monkeypatch)


class World:
    def __init__(self, tmp_path, monkeypatch):
        self.root, self.run_dir, self.lines = tmp_path, tmp_path / "runs" / "tiny", []
        self.package = f"fake_{tmp_path.name}"
        (tmp_path / self.package).mkdir()
        (tmp_path / self.package / "__init__.py").touch()
        for name in STAGES:
            self.write(name, STAGE.replace("CONFIG", SETTING.get(name, "''")))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(
            os, "fsync", lambda handle: None
        )  # durability is proved in test_checkpoint.py; this is slow
        self.table = tuple(
            Stage(name, name, READS[name], name in ("preferences", "reward", "rejection"), f"{self.package}.{name}")
            for name in STAGES
        )

    def write(self, stage: str, source: str) -> None:
        (self.root / self.package / f"{stage}.py").write_text(textwrap.dedent(source))
        sys.modules.pop(f"{self.package}.{stage}", None)
        fingerprint.forget_code()

    def recipe(self, **settings):
        return Recipe.model_validate({"run": "tiny", "rounds": 2, "wandb": "disabled", **settings})

    def run(self, recipe=None, **more):
        self.lines.clear()
        recipe = recipe or self.recipe()
        return pipeline.run_recipe(recipe, self.run_dir, pipeline=self.table, say=self.lines.append, **more)

    def plan(self, recipe=None, stage=None, **more):
        recipe = recipe or self.recipe()
        steps = select(expand(recipe, self.table), stage, self.table)
        return {step.name: decision for step, decision in pipeline.plan(steps, recipe, self.run_dir, **more)}

    def text(self, step: str) -> str:
        return (self.run_dir / step / "text").read_text()

    def events(self, kind: str) -> list[str]:
        rows = map(json.loads, (self.run_dir / "events.jsonl").read_text().splitlines())
        return [row["step"] for row in rows if row["event"] == kind]


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """The report has tests of its own; here it leaves the two files that the pipeline looks for."""

    def write(run_dir, recipe, steps, *, origins=None):
        for name in ("report.json", "report.html"):
            (run_dir / name).write_text("{}")
        return {"run": recipe.run}

    monkeypatch.setattr("rlhf.report.write", write)


ALL = [
    *("base", "sft", "preferences-1", "reward-1", "rejection-1", "preferences-2", "reward-2", "rejection-2"),
    *("gatt", "ppo", "evaluate"),
]


# --- steps ---


def test_two_rounds_and_what_each_step_reads(world):
    steps = {step.name: step for step in expand(world.recipe(), world.table)}
    assert list(steps) == ALL
    assert steps["preferences-2"].reads == {"policies": ("base", "sft", "rejection-1")}
    assert steps["reward-2"].reads == {"policy": ("rejection-1",), "preferences*": ("preferences-1", "preferences-2")}
    assert steps["rejection-2"].reads["rejection*"] == ("rejection-1",)
    assert steps["rejection-1"].reads["rejection*"] == ()
    assert steps["ppo"].reads == {"policy": ("gatt",), "reward": ("reward-2",)}
    assert steps["evaluate"].reads["policies"] == ("base", "sft", "rejection-1", "rejection-2", "gatt", "ppo")
    assert (steps["rejection-2"].round, steps["ppo"].round) == (2, 0)


def test_without_refresh_the_first_round_s_reward_models_serve_all(world):
    """The later rounds are there under their own names, so their random numbers are those of a refreshed run."""
    steps = {step.name: step for step in expand(world.recipe(rounds=3, refresh=False), world.table)}
    first = ["base", "sft", "preferences-1", "reward-1", "rejection-1"]
    assert list(steps) == [*first, "rejection-2", "rejection-3", "gatt", "ppo", "evaluate"]
    assert steps["rejection-3"].reads == {
        "base": ("base",),
        "policy": ("rejection-2",),
        "reward": ("reward-1",),
        "rejection*": ("rejection-1", "rejection-2"),
    }
    assert steps["ppo"].reads == {"policy": ("gatt",), "reward": ("reward-1",)}
    assert steps["evaluate"].reads["reward*"] == ("reward-1",)


def test_a_run_that_is_no_longer_refreshed_makes_again_what_read_later_reward_models(world):
    world.run()
    planned = world.plan(world.recipe(refresh=False))
    assert [name for name, decision in planned.items() if decision.run] == ["rejection-2", "gatt", "ppo", "evaluate"]
    assert planned["rejection-2"].reason == "reads reward-1 now (and 1 more)"


def test_one_round_keeps_its_number(world):
    assert "reward-1" in [step.name for step in expand(world.recipe(rounds=1), world.table)]


def test_reward_models_alone_are_made_once_whatever_the_rounds(world):
    recipe = world.recipe(rounds=5, stages=["base", "sft", "reward", "ppo"])
    steps = expand(recipe, world.table)
    assert [step.name for step in steps] == ["base", "sft", "reward-1", "ppo"]
    assert steps[2].reads == {"policy": ("sft",), "preferences*": ()}


def test_a_stage_that_cannot_do_without_another_says_so(world):
    with pytest.raises(ConfigError, match="ppo reads reward, which this recipe leaves out"):
        expand(world.recipe(stages=["base", "sft", "ppo"]), world.table)


def test_optional_reads_may_be_missing(world):
    table = (*world.table[:2], Stage("ppo", "", ("policy", "reward?")))
    assert expand(world.recipe(stages=["base", "sft", "ppo"]), table)[-1].reads["reward?"] == ()


def test_stage_selects_all_rounds_or_one_step_or_several(world):
    steps = expand(world.recipe(), world.table)
    assert [step.name for step in select(steps, "rejection", world.table)] == ["rejection-1", "rejection-2"]
    assert [step.name for step in select(steps, "ppo,rejection-2", world.table)] == ["rejection-2", "ppo"]
    with pytest.raises(ConfigError, match="stage=, names no stage"):
        select(steps, ",", world.table)
    with pytest.raises(ConfigError, match="unknown stage rejectoin") as caught:
        select(steps, "rejectoin", world.table)
    assert caught.value.hints[0] == "did you mean rejection?"
    with pytest.raises(ConfigError, match="stage gatt is not part of this recipe"):
        select(expand(world.recipe(stages=["base", "sft"]), world.table), "gatt", world.table)


def test_seeds_differ_by_step_and_purpose_and_follow_the_recipe(world):
    assert pipeline.derive_seed(0, "ppo") == pipeline.derive_seed(0, "ppo") != pipeline.derive_seed(0, "sft")
    assert pipeline.derive_seed(0, "ppo") != pipeline.derive_seed(1, "ppo")
    # the first 31 bits of sha256("0/ppo"), here from coreutils: every machine must agree
    asked = subprocess.run(["sha256sum"], input=b"0/ppo", capture_output=True, check=True).stdout[:8]
    assert pipeline.derive_seed(0, "ppo") == int(asked, 16) % 2**31


# --- run and skip ---


def test_a_report_that_nobody_asked_for_is_not_written(world):
    outcome = world.run(report=False)
    assert list(outcome.made) == ALL
    assert outcome.report is None
    assert not (world.run_dir / "report.html").exists()


def test_the_whole_recipe_runs_in_order_then_nothing_does(world):
    outcome = world.run()
    assert list(outcome.made) == ALL == world.events("done")
    assert outcome.report == {"run": "tiny"}
    assert world.text("sft") == "sft  (base:base  ())"
    began = time.perf_counter()
    again = world.run()
    assert time.perf_counter() - began < 2
    assert (again.made, list(again.skipped), again.report) == ((), ALL, None)
    assert len(world.lines) == len(ALL)
    assert all(line.endswith("skip  config, inputs and code unchanged") for line in world.lines)


def test_the_manifest_says_what_made_the_artefact_and_what_it_cost(world):
    world.run(stage="base")
    manifest = verify(world.run_dir / "base")
    assert {"fingerprint", "config", "inputs", "code", "versions", "git_commit", "seeds", "template", "tokens"} <= set(
        manifest
    )
    assert manifest["config"]["seed"] == 0
    assert set(manifest["config"]) == {"seed", "model", "data", "microworld", "generation", "base"}
    assert list(manifest["code"]) == [f"{world.package}/base.py"]
    assert manifest["seeds"]["step"] == pipeline.derive_seed(0, "base")
    assert manifest["seconds"] >= 0
    assert manifest["peak_rss_mb"] > 1


def test_the_manifest_holds_the_tokens_that_the_stage_counted(world):
    world.write("sft", STAGE.replace("CONFIG", "''") + "    job.track.tokens += 300\n    job.track.tokens += 45\n")
    world.run(stage="base,sft")
    assert read_manifest(world.run_dir / "sft")["tokens"] == 345
    assert read_manifest(world.run_dir / "base")["tokens"] is None  # none counted is not none seen


def test_a_changed_setting_reruns_its_stage_and_what_reads_it_only(world):
    world.run()
    outcome = world.run(world.recipe(ppo={"kl_coef": 0.005}))
    assert outcome.made == ("ppo", "evaluate")
    assert "ppo            run   ppo.kl_coef changed from 0.01 to 0.005" in world.lines
    assert "evaluate       run   ppo was made again since" in world.lines


def test_plan_says_the_same_beforehand_and_touches_nothing(world):
    world.run()
    before = {path: path.stat().st_mtime_ns for path in world.run_dir.rglob("*")}
    planned = world.plan(world.recipe(reward={"margin": "large"}))
    assert {path: path.stat().st_mtime_ns for path in world.run_dir.rglob("*")} == before
    assert planned["reward-1"].reason == "reward.margin changed from small to large"
    assert planned["rejection-1"].reason == "reward-1 will be made again"
    assert not planned["preferences-1"].run
    assert planned["preferences-2"].reason == "rejection-1 will be made again"
    assert planned["evaluate"].run


def test_an_equal_artefact_made_again_leaves_what_reads_it_alone(world):
    world.run()
    outcome = world.run(stage="sft", rerun=True)
    assert outcome.made == ("sft",)
    assert world.run().made == ()


@pytest.mark.parametrize("setting", [{"run": "other"}, {"wandb": "offline"}, {"threads": 2}, {"rounds": 2}])
def test_settings_that_change_no_result_make_nothing_stale(world, setting):
    world.run()
    assert not any(decision.run for decision in world.plan(world.recipe(**setting)).values())


@pytest.mark.parametrize("setting", [{"seed": 1}, {"model": {"layers": 2}}, {"microworld": {"instruction_share": 0.1}}])
def test_settings_that_all_stages_see_make_all_stale(world, setting):
    world.run()
    assert all(decision.run for decision in world.plan(world.recipe(**setting)).values())


def test_another_round_adds_steps_and_keeps_the_earlier_ones(world):
    world.run()
    planned = world.plan(world.recipe(rounds=3))
    assert [name for name, decision in planned.items() if decision.run] == [
        *("preferences-3", "reward-3", "rejection-3", "gatt", "ppo", "evaluate")
    ]
    assert planned["gatt"].reason == "reads rejection-3 now (and 3 more)"


def test_changed_code_reruns_unless_accepted_once_with_reuse(world):
    world.run()
    world.write("evaluate", STAGE.replace("CONFIG", "''") + "\n# a remark\n")
    reason = f"code changed: {world.package}/evaluate.py"
    assert world.plan()["evaluate"] == pipeline.Decision(True, reason)
    assert world.run(reuse=True).made == ()
    assert world.lines[-1].endswith("accepted with --reuse")
    assert not world.plan()["evaluate"].run  # it stays accepted
    assert read_manifest(world.run_dir / "evaluate")["accepted"] != read_manifest(world.run_dir / "evaluate")["code"]
    world.write("evaluate", STAGE.replace("CONFIG", "'changed'"))
    assert world.plan()["evaluate"].run  # other code still is not


def test_code_edited_during_a_run_is_noticed_by_the_next(world):
    edit = (
        "import pathlib\ndef run(job):\n    with pathlib.Path(__file__).open('a') as file:\n        file.write('#')\n"
    )
    world.write("base", edit)
    world.run(stage="base")
    fingerprint.forget_code()  # as the next process does
    assert world.plan(stage="base")["base"].reason.startswith("code changed: ")


def test_reuse_does_not_hide_a_changed_setting(world):
    world.run()
    world.write("ppo", STAGE.replace("CONFIG", "'changed'"))
    assert world.plan(world.recipe(ppo={"kl_coef": 0.5}), reuse=True)["ppo"].run


def test_code_reaches_through_imports_but_not_to_the_bookkeeping(world):
    world.write("base", "from rlhf.pipeline import Job\nfrom rlhf.data.types import Turn\n" + STAGE)
    code = fingerprint.code_of(f"{world.package}.base")
    assert list(code) == [f"{world.package}/base.py", "rlhf/data/lines.py", "rlhf/data/types.py"]
    world.write("base", "def run(job):\n    from rlhf.data import pool\n")
    deep = fingerprint.code_of(f"{world.package}.base")
    assert {"rlhf/data/pool.py", "rlhf/data/types.py"} <= set(deep)  # pool.py imports types.py
    assert not any(
        path in deep for path in ("rlhf/errors.py", "rlhf/report.py", "rlhf/cli.py", "rlhf/tracking/track.py")
    )


def test_a_local_data_file_counts_by_content(world):
    data = world.root / "rows.jsonl"
    data.write_text("one")
    recipe = world.recipe(sft={"data": [{"name": "microworld", "path": str(data)}]})
    world.run(recipe)
    os.utime(data, ns=(1, 1))
    assert not world.plan(recipe)["sft"].run  # touched, not changed
    data.write_text("two")
    assert world.plan(recipe)["sft"].reason == f"{data} changed"
    data.unlink()
    with pytest.raises(MissingError, match=r"sft.data.0.path: .*rows.jsonl does not exist"):
        world.run(recipe, stage="sft", rerun=True)


def test_a_damaged_artefact_is_made_again(world):
    world.run()
    (world.run_dir / "sft" / "text").write_text("short")
    assert world.plan()["sft"].reason.startswith("damaged: text has 5 bytes, was written with")
    assert world.run().made == ("sft",)


def test_a_bit_flipped_in_an_input_stops_the_stage_that_reads_it(world):
    world.run()
    path = world.run_dir / "gatt" / "text"
    facts, text = path.stat(), path.read_text()
    path.write_text(text.swapcase())
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(MissingError, match="gatt is damaged: text does not match its checksum") as caught:
        world.run(stage="ppo", rerun=True)
    assert caught.value.hints == ("make it again: rlhf run stage=gatt --rerun",)


# --- refusals before anything starts ---


def test_a_missing_input_is_named_with_the_commands_that_make_it(world):
    with pytest.raises(MissingError, match="ppo reads runs/tiny/gatt, which does not exist") as caught:
        world.run(stage="ppo", arguments=["run=tiny", "ppo.kl_coef=0.1"])
    assert caught.value.hints == (
        "make it first: rlhf run stage=gatt run=tiny ppo.kl_coef=0.1",
        "or run everything: rlhf run run=tiny ppo.kl_coef=0.1",
    )
    assert not (world.run_dir / "events.jsonl").exists()


def test_a_stale_input_that_is_not_to_be_made_is_mentioned(world):
    world.run()
    world.run(world.recipe(gatt={"dialogues": 3}), stage="ppo", rerun=True)
    assert world.lines[0] == "note: gatt is read as it is, though stale: gatt.dialogues changed from 1000 to 3"


def test_too_little_room_is_said_before_anything_starts(world, monkeypatch):
    monkeypatch.setattr("rlhf.planning.room.free_bytes", lambda path: 5)
    with pytest.raises(DiskError, match=r"runs/tiny needs 209,715,200 bytes, 5 are free"):
        world.run()


def test_a_batch_that_the_processes_do_not_divide_is_refused_before_anything_starts(world, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "7")
    with pytest.raises(ConfigError, match=r"must be a multiple of microbatch_size \* processes \(7\)"):
        world.run()


# --- failures ---


def test_a_bug_leaves_its_traceback_in_a_file_and_keeps_finished_steps(world):
    world.write("sft", "def run(job):\n    (job.out / 'text').write_text('half')\n    raise ValueError('a\\nb')\n")
    with pytest.raises(RlhfError, match="sft failed: ValueError: a") as caught:
        world.run()
    assert caught.value.exit_code == 1
    assert caught.value.where == "traceback in runs/tiny/error-sft.txt"
    assert "Traceback (most recent call last)" in (world.run_dir / "error-sft.txt").read_text()
    assert sorted(path.name for path in world.run_dir.iterdir() if path.is_dir()) == ["base"]
    assert world.events("failed") == ["sft"]
    world.write("sft", STAGE.replace("CONFIG", "''"))
    assert world.run().made == tuple(ALL[1:])
    assert not (world.run_dir / "error-sft.txt").exists()


def test_with_debugging_on_a_bug_is_raised_as_it_is(world, monkeypatch):
    monkeypatch.setenv("RLHF_DEBUG", "1")
    world.write("base", "def run(job):\n    raise ValueError('bug')\n")
    with pytest.raises(ValueError, match="bug"):
        world.run()


@pytest.mark.parametrize(
    "raising",
    [
        "OSError(28, 'No space left on device')",
        "RuntimeError('Error while serializing: No space left on device (os error 28)')",
    ],
)
def test_a_full_disk_inside_a_stage_is_a_disk_error_whoever_reports_it(world, raising):
    world.write("base", f"def run(job):\n    raise {raising}\n")
    with pytest.raises(DiskError, match="the disk is full"):
        world.run()


def test_an_interrupt_stays_an_interrupt(world):
    world.write("base", "def run(job):\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        world.run()
    assert list(world.run_dir.glob(".*partial*")) == []


def test_sigterm_ends_the_step_with_preempted(world):
    world.write("base", "import os, signal, time\ndef run(job):\n    os.kill(os.getpid(), 15)\n    time.sleep(10)\n")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(PreemptedError, match="base was asked to stop") as caught:
        world.run()
    assert caught.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is before


# --- killed ---

KILLED = """
import sys
sys.path[:0] = [{root!r}]
from rlhf import pipeline, report
from rlhf.schema import Recipe
from rlhf.planning.steps import Stage
report.write = lambda *a, **k: {{}}
table = tuple(Stage(name, name, tuple(reads), rounds, module) for name, reads, rounds, module in {table!r})
from pathlib import Path
recipe = Recipe.model_validate({{"run": "tiny", "rounds": 2, "wandb": "disabled"}})
pipeline.run_recipe(recipe, Path({run_dir!r}), pipeline=table)
"""


def start(world: World) -> subprocess.Popen[bytes]:
    rows = [(s.name, s.reads, s.per_round, s.module) for s in world.table]
    script = KILLED.format(root=str(world.root), table=rows, run_dir=str(world.run_dir))
    here = Path(pipeline.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(here)}
    return subprocess.Popen([sys.executable, "-c", script], cwd=world.root, env=environment, stdout=subprocess.DEVNULL)


def test_killed_in_the_middle_of_a_stage_finished_steps_stay_and_the_half_one_never_counts(world):
    slow = "import time\ndef run(job):\n    (job.out / 'text').write_text('half')\n    time.sleep(60)\n"
    world.write("rejection", slow)
    process = start(world)
    try:
        half = ".rejection-1.partial"
        deadline = time.monotonic() + 30
        while not (world.run_dir / half / "text").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(LockedError, match=r"runs/tiny is in use") as caught:
            world.run()
        assert f"process {process.pid} on" in str(caught.value.where)
    finally:
        process.kill()
        process.wait()
    assert not (world.run_dir / "rejection-1").exists()
    assert world.plan()["rejection-1"].reason == "never made"
    finished = {name: (world.run_dir / name / "manifest.json").stat().st_mtime_ns for name in ALL[:4]}

    world.write("rejection", STAGE.replace("CONFIG", "''"))
    outcome = world.run()
    assert list(outcome.skipped) == ALL[:4]
    assert list(outcome.made) == ALL[4:]
    assert {name: (world.run_dir / name / "manifest.json").stat().st_mtime_ns for name in ALL[:4]} == finished
    assert not (world.run_dir / half).exists()
    assert "half" not in world.text("rejection-1")


def test_killed_at_random_again_and_again_the_end_is_that_of_an_undisturbed_run(world):
    for number in range(6):
        process = start(world)
        time.sleep(0.25 + 0.09 * number)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for manifest in world.run_dir.glob("[!.]*/manifest.json"):
            verify(manifest.parent)
    world.run()
    ends = {name: read_manifest(world.run_dir / name)["digest"] for name in ALL}
    world.run_dir = world.root / "runs" / "undisturbed"
    world.run()
    assert {name: read_manifest(world.run_dir / name)["digest"] for name in ALL} == ends


def test_a_journal_line_torn_by_a_power_cut_swallows_nothing(world):
    world.run(stage="base")
    with (world.run_dir / "events.jsonl").open("a") as file:
        file.write('{"time": "2026-')
    world.run(stage="sft")
    assert pipeline.Journal(world.run_dir / "events.jsonl").last()["sft"]["event"] == "done"
