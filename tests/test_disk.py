"""A disk that fills up: the run waits, says so, goes on when there is room, and nothing is lost or written twice."""

import errno
import json
import os
import threading
import time
from contextlib import contextmanager

import pytest

from rlhf import disk
from rlhf.checkpoint import locked, open_artefact, verify
from rlhf.disk import append_line, disk_errno, patience, write_text, written
from rlhf.errors import DiskError
from rlhf.planning.room import ROOM, require_room, weights_of
from rlhf.planning.steps import Step, expand
from rlhf.provenance.meter import Journal
from rlhf.schema import Recipe

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


@contextmanager
def small_disk(folder, size):
    folder.mkdir(exist_ok=True)
    if os.system(f"mount -t tmpfs -o size={size} tmpfs '{folder}' 2>/dev/null") != 0:
        pytest.skip("no right to mount here")
    try:
        yield folder
    finally:
        os.system(f"umount -l '{folder}'")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(disk, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(disk, "LINE_SECONDS", 0.1)


def failing(times, number, done="done"):
    """A write that fails so often, then succeeds."""
    left = [times]

    def write():
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(number, os.strerror(number))
        return done

    return write


# --- waiting ---


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_waited_for_and_told(tmp_path, number):
    lines = []
    with patience("pause", lines.append):
        assert written(failing(3, number), tmp_path / "weights", needs=1234) == "done"
    assert len(lines) == 3
    assert lines[0].startswith(f"paused: cannot write {tmp_path}/weights: 1,234 bytes are needed, ")
    assert "are free; waiting for room, 30 min 00 s more" in lines[0]


def test_room_that_never_comes_ends_in_a_disk_error(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "PATIENCE_SECONDS", 1.0)
    began = time.monotonic()
    with patience("pause", lambda line: None), pytest.raises(DiskError, match="the disk is full") as caught:
        written(failing(10**6, errno.ENOSPC), tmp_path / "weights", needs=77)
    assert 1.0 <= time.monotonic() - began < 3.0
    assert caught.value.exit_code == 74
    assert caught.value.where == "77 bytes are needed, waited 1 s for room"


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ESTALE])
def test_what_waiting_cannot_mend_is_not_waited_for(tmp_path, number):
    with patience("pause", pytest.fail), pytest.raises(DiskError, match=f"cannot write {tmp_path}/weights: the "):
        written(failing(1, number), tmp_path / "weights")


def test_stop_does_not_wait_and_neither_does_anything_outside_a_run(tmp_path):
    with patience("stop", pytest.fail), pytest.raises(DiskError):
        written(failing(1, errno.ENOSPC), tmp_path / "weights")
    with pytest.raises(DiskError):
        written(failing(1, errno.ENOSPC), tmp_path / "weights")


def test_other_errors_pass_as_they_are(tmp_path):
    with patience("pause", pytest.fail), pytest.raises(PermissionError):
        written(failing(1, errno.EACCES), tmp_path / "weights")


def test_the_disk_is_recognised_whoever_reports_it():
    rust = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert disk_errno(rust) == errno.ENOSPC
    assert disk_errno(RuntimeError("... Disk quota exceeded (os error 122)")) == errno.EDQUOT
    assert disk_errno(RuntimeError("... No such file or directory (os error 2)")) is None
    wrapped = ValueError("cannot save")
    wrapped.__cause__ = OSError(errno.EROFS, "read-only")
    assert disk_errno(wrapped) == errno.EROFS
    assert disk_errno(ValueError("28")) is None


# --- real disks ---


@needs_root
def test_a_line_is_appended_whole_and_once_on_a_disk_that_is_enlarged_meanwhile(tmp_path):
    with small_disk(tmp_path / "disk", "64k") as folder:
        journal = Journal(folder / "events.jsonl")
        journal.write("start", "sft")
        before = (folder / "events.jsonl").read_bytes()
        lines = []
        timer = threading.Timer(0.3, os.system, [f"mount -o remount,size=1m '{folder}'"])
        timer.start()
        with patience("pause", lines.append):
            journal.write("note", "sft", text="x" * 100_000)
        timer.join()
        rows = (folder / "events.jsonl").read_bytes()
        assert rows.startswith(before)
        assert [json.loads(row)["event"] for row in rows.splitlines()] == ["start", "note"]
        assert lines


@needs_root
def test_an_artefact_outlives_a_full_disk_and_its_successor_is_whole(tmp_path):
    with small_disk(tmp_path / "disk", "256k") as folder:

        def make(size):
            with open_artefact(folder / "sft", {"step": "sft"}) as out:
                write_text(out / "weights", "w" * size)

        make(60_000)
        old = verify(folder / "sft")["digest"]
        with pytest.raises(DiskError, match=r"sft.*: the disk is full"):
            make(400_000)
        assert verify(folder / "sft")["digest"] == old
        assert [path.name for path in folder.iterdir()] == ["sft"]
        timer = threading.Timer(0.3, os.system, [f"mount -o remount,size=2m '{folder}'"])
        timer.start()
        with patience("pause", lambda line: None):
            make(400_000)
        timer.join()
        verify(folder / "sft")
        assert (folder / "sft" / "weights").stat().st_size == 400_000


@needs_root
def test_a_model_is_saved_again_from_its_start(tmp_path, policy, tokenizer):
    from safetensors.torch import load_file

    from rlhf.models.load import save

    save(policy, tokenizer, tmp_path / "reference")
    with small_disk(tmp_path / "disk", "100k") as folder:
        lines = []
        timer = threading.Timer(0.5, os.system, [f"mount -o remount,size=8m '{folder}'"])
        timer.start()
        with patience("pause", lines.append):
            save(policy, tokenizer, folder / "checkpoint")
        timer.join()
        assert lines
        expected = load_file(tmp_path / "reference" / "model.safetensors")
        found = load_file(folder / "checkpoint" / "model.safetensors")
        assert expected.keys() == found.keys()
        assert all(expected[name].equal(found[name]) for name in expected)


@needs_root
def test_a_read_only_disk_is_one_clear_message(tmp_path):
    with small_disk(tmp_path / "disk", "64k") as folder:
        os.system(f"mount -o remount,ro '{folder}'")
        with pytest.raises(DiskError, match="the file system is read-only"), locked(folder / "runs" / "tiny"):
            pass
        with pytest.raises(DiskError, match="the file system is read-only"), open_artefact(folder / "sft", {}):
            pass


def test_no_right_to_write_is_a_disk_error(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DiskError, match=r"cannot write .*tiny: permission denied"), locked(tmp_path / "tiny"):
        pass


def test_a_folder_that_vanishes_is_said_to_have_vanished(tmp_path):
    run = tmp_path / "tiny"

    def unmounted_meanwhile() -> None:
        with open_artefact(run / "sft", {}) as out:
            run.rename(tmp_path / "moved")
            (out / "weights").write_text("w")

    with pytest.raises(DiskError, match=r"\.sft\.partial vanished while sft was being made") as caught:
        unmounted_meanwhile()
    assert caught.value.exit_code == 74
    assert "No such file" in str(caught.value.where)


def test_a_line_cut_by_a_full_disk_is_cut_off_before_the_next_attempt(tmp_path):
    class Full:
        """A file whose first write stops in the middle of the line."""

        def __init__(self, file):
            self.file, self.full = file, True

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if self.full and len(data) > 5:
                return self.file.write(data[:5])
            if self.full:
                self.full = False
                raise OSError(errno.ENOSPC, "full")
            return self.file.write(data)

    path = tmp_path / "lines"
    with path.open("ab", buffering=0) as file, patience("pause", lambda line: None):
        append_line(file, b"first\n", path)
        append_line(Full(file), b"0123456\n", path)
    assert path.read_bytes() == b"first\n0123456\n"


# --- before it starts ---


def test_weights_are_worked_out_as_the_model_counts_them(tokenizer):
    from rlhf.models.load import from_scratch

    recipe = Recipe.model_validate({"run": "tiny", "model": {"vocab_size": len(tokenizer), "layers": 2, "kv_heads": 1}})
    model = from_scratch(recipe.model, tokenizer)
    counted = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert weights_of(Step("base", "base", 0, ""), recipe, None)[0] == counted


def test_needed_bytes_follow_the_models_and_are_explained(tmp_path, monkeypatch):
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "a.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "llama" / "b.safetensors").write_bytes(b"x" * 500)
    recipe = Recipe.model_validate({"run": "tiny", "model": {"path": str(tmp_path / "llama")}, "rounds": 1})
    steps = [
        step for step in expand_without_data(recipe, monkeypatch) if step.name in ("base", "sft", "reward-1", "ppo")
    ]
    # Artefacts: base copies nothing, sft 1, reward 2, ppo 1: 4 x 1,500. Saves: PPO's two learners x 6 x 1,500.
    need = 4 * 1500 + 2 * 6 * 1500 + ROOM
    monkeypatch.setattr("rlhf.planning.room.free_bytes", lambda path: need)
    require_room(tmp_path / "tiny", steps, recipe)
    monkeypatch.setattr("rlhf.planning.room.free_bytes", lambda path: need - 1)
    with pytest.raises(DiskError, match=f"needs {need:,} bytes, {need - 1:,} are free") as caught:
        require_room(tmp_path / "tiny", steps, recipe)
    assert "6,000 for base to ppo, 18,000 for two saves" in str(caught.value.where)
    assert f"{recipe.model.path} has 1,500" in str(caught.value.where)


def test_models_of_a_comparison_of_margins_need_room_too(monkeypatch):
    """Helpfulness and safety, and a helpfulness model for every other margin: small is the run's own."""
    margins = {"margin": "small", "margin_ablation": ["none", "small", "large", "none"]}
    recipe = Recipe.model_validate({"run": "tiny", "reward": margins, "rounds": 2})
    found = {step.name: (step.models, step.learners) for step in expand_without_data(recipe, monkeypatch)}
    assert found["reward-1"] == found["reward-2"] == (4, 1)
    assert (found["base"], found["sft"], found["ppo"]) == ((1, 1), (1, 1), (1, 2))


def test_a_comparison_of_shares_needs_room_for_a_model_each(monkeypatch):
    stages = ["base", "sft", "preferences", "reward", "rejection", "scaling"]
    recipe = Recipe.model_validate({"run": "tiny", "rounds": 1, "stages": stages, "scaling": {"shares": [0, 0.5, 1]}})
    found = {step.name: (step.models, step.learners) for step in expand_without_data(recipe, monkeypatch)}
    assert found["scaling"] == (3, 1)


def test_an_input_that_was_measured_goes_before_what_settings_say(tmp_path):
    with open_artefact(tmp_path / "reward-1", {"step": "reward-1"}) as out:
        for domain, size in (("helpfulness", 700), ("safety", 900)):
            (out / "checkpoint" / domain).mkdir(parents=True)
            (out / "checkpoint" / domain / "model.safetensors").write_bytes(b"x" * size)
    step = Step("ppo", "ppo", 0, "", {"reward": ("reward-1",)})
    assert weights_of(step, Recipe(run="tiny"), tmp_path) == (900, "a model of reward-1 has 900")


def expand_without_data(recipe, monkeypatch):
    monkeypatch.setattr("rlhf.planning.steps._check_data", lambda recipe, stage: None)
    return expand(recipe)
