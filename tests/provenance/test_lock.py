"""rlhf.lock: what a run was made on, held to with --locked, and made again with `rlhf reproduce`."""

import json
import re

import pytest
import yaml

from rlhf.cli import main
from rlhf.data.sources import known_sources
from rlhf.errors import ConfigError
from rlhf.planning.steps import Stage
from rlhf.provenance import lock

STAGE = """
import json
from pathlib import Path
def run(job):
    (job.out / "text").write_text(f"{job.name} {job.seed} " + Path("luck").read_text())
"""
HERE = {"python": "3.11.9", "cpu.maker": "A", "package.torch": "2.13.0", "threads": "2", "data.rows.jsonl": "aa"}


def test_the_lock_is_yaml_of_one_line_each_without_addresses(tmp_path):
    lock.update(tmp_path, {**lock.machine(), **HERE})
    text = (tmp_path / "rlhf.lock").read_text()
    assert yaml.safe_load(text) == {**lock.machine(), **HERE} == lock.read(tmp_path)
    assert re.match(r"3\.\d+\.\d+", lock.machine()["python"])
    assert {"package.transformers", "package.tokenizers", "cpu.maker"} <= set(lock.read(tmp_path))
    assert "://" not in text


def test_several_processes_are_a_line(monkeypatch):
    alone = lock.machine()
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = ["processes is 2 by ddp in the lock, absent here"]
    assert list(lock.differences(lock.machine(), alone)) == said


def test_torch_tells_its_threads_and_capability():
    import torch

    found = lock.kernels()
    assert found["threads"] == str(torch.get_num_threads())
    assert found["torch.capability"] == torch.backends.cpu.get_cpu_capability()


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (HERE, []),
        (HERE | {"package.torch": "2.12.0"}, ["package.torch is 2.13.0 in the lock, 2.12.0 here"]),
        (HERE | {"environment.MKL_CBWR": "AVX2"}, ["environment.MKL_CBWR is absent in the lock, AVX2 here"]),
        (HERE | {"data.rows.jsonl": "bb"}, ["data.rows.jsonl is aa in the lock, bb here"]),
        (HERE | {"data.other.jsonl": "bb"}, []),  # another step reads it
        ({name: HERE[name] for name in ("python", "cpu.maker", "package.torch")}, []),  # torch is not loaded yet
        (HERE | {"threads": "4"}, ["threads is 2 in the lock, 4 here"]),
    ],
)
def test_differences_are_named_line_by_line(here, said):
    assert list(lock.differences(HERE, here)) == said


def test_a_lock_is_required_to_be_there_and_to_hold(tmp_path):
    with pytest.raises(ConfigError, match=r"has no rlhf\.lock to be held to"):
        lock.require(tmp_path, HERE)
    lock.update(tmp_path, HERE)
    lock.require(tmp_path, HERE)
    with pytest.raises(ConfigError, match=r"not as locked: python is 3.11.9 in the lock, 3.12.1 here") as caught:
        lock.require(tmp_path, HERE | {"cpu.maker": "B", "python": "3.12.1"})
    assert "rlhf.lock, and 1 more" in str(caught.value.where)


def test_another_machine_is_noted_and_written_and_other_lines_stay(tmp_path):
    assert lock.update(tmp_path, HERE) == []
    lock.add(tmp_path, {"template.sft": "cc"})
    assert lock.update(tmp_path, {"python": "3.12.0", "cpu.maker": "A", "package.torch": "2.13.0"}) == [
        "python is 3.11.9 in the lock, 3.12.0 here"
    ]
    assert lock.read(tmp_path) == HERE | {"python": "3.12.0", "template.sft": "cc"}


def test_a_set_of_the_hub_is_locked_by_its_commit():
    """A file by what it holds; the micro-world is in the settings already."""
    given = [
        {"name": "microworld"},
        {"name": "mine", "path": "rows.jsonl"},
        {"name": "nvidia/HelpSteer2"},
        {"name": "openai/webgpt_comparisons", "revision": "a" * 40},
    ]
    manifest = {"config": {"seed": 0, "reward": {"data": given}}, "data": {"rows.jsonl": {"sha256": "bb"}}}
    assert lock.sources("reward", manifest) == {
        "data.rows.jsonl": "bb",
        "data.nvidia/HelpSteer2": known_sources()["nvidia/HelpSteer2"]["revision"],
        "data.openai/webgpt_comparisons": "a" * 40,
    }


@pytest.mark.parametrize("text", ["- a", "{", "a: !!python/object/apply:os.system [id]"])
def test_what_is_no_lock_is_refused(tmp_path, text):
    (tmp_path / "rlhf.lock").write_text(text)
    with pytest.raises(Exception, match=r"not a valid rlhf\.lock|would make an object") as caught:
        lock.read(tmp_path)
    assert caught.value.exit_code in (2, 77)


# --- through the command line ---


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Two stages of one line, in the place of the recipe's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RLHF_RUNS", raising=False)
    package = f"locked_{tmp_path.name}"
    (tmp_path / package).mkdir()
    for name in ("base", "sft"):
        (tmp_path / package / f"{name}.py").write_text(STAGE)
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / "luck").write_text("7")
    monkeypatch.syspath_prepend(str(tmp_path))
    table = tuple(
        Stage(name, name, reads, module=f"{package}.{name}") for name, reads in (("base", ()), ("sft", ("base",)))
    )
    monkeypatch.setattr("stages.PIPELINE", table)
    return tmp_path


RUN = ("run", "stages=[base, sft]", "seed=5", "wandb=disabled")


def test_locked_goes_on_here_and_stops_elsewhere(world, capsys, monkeypatch):
    assert main([*RUN, "--locked"]) == 2
    assert main(RUN) == 0
    assert main([*RUN, "--rerun", "--locked"]) == 0
    monkeypatch.setattr("rlhf.provenance.lock.versions", lambda: {"python": "3.99.0", "platform": "x", "torch": "9.0"})
    capsys.readouterr()
    assert main([*RUN, "--locked"]) == 2
    assert "not as locked: python is 3." in capsys.readouterr().err
    assert main([*RUN, "--rerun"]) == 0
    assert "3.99.0 here: base may differ in its last bits" in capsys.readouterr().out


def test_a_run_is_made_again_bit_by_bit_from_its_manifests(world, capsys):
    assert main(RUN) == 0
    assert main(["reproduce", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "base  bit-identical\nsft   bit-identical\nruns/tiny-again is bit-identical to runs/tiny" in out
    manifest = json.loads((world / "runs" / "tiny-again" / "sft" / "manifest.json").read_text())
    assert manifest["config"]["seed"] == 5


def test_what_differs_is_named(world, capsys):
    assert main(RUN) == 0
    (world / "luck").write_text("8")
    capsys.readouterr()
    assert main(["reproduce", "runs/tiny", "into=other"]) == 1
    out, err = capsys.readouterr()
    assert "base  differs  text\nsft   differs  text" in out
    assert err.startswith("error: 2 of 2 steps differ, the first is base\n  the machine is as rlhf.lock says")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["reproduce"], 2, "needs the run: its name, or its folder"),
        (["reproduce", "nothing"], 69, "has no finished step"),
        (["reproduce", "tiny", "seed=3"], 2, "takes its settings from the run"),
        (["reproduce", "tiny", "into=tiny"], 2, "is the run itself"),
    ],
)
def test_reproduce_explains_itself(world, capsys, arguments, code, said):
    assert main(RUN) == 0
    assert main(arguments) == code
    assert said in capsys.readouterr().err
