"""Artefacts: whole or not at all, whatever kills the writer; damage is found and named; one writer per run."""

import errno
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from rlhf import checkpoint
from rlhf.checkpoint import damage, is_locked, locked, open_artefact, read_manifest, recover, verify, write_manifest
from rlhf.errors import DiskError, LockedError, MissingError

SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


def write(final: Path, text: str = "abc") -> Path:
    with open_artefact(final, {"step": final.name, "config": {"ppo": {"kl_coef": 0.01}}}) as out:
        (out / "checkpoint").mkdir()
        (out / "checkpoint" / "weights").write_text(text)
        (out / "pool.jsonl").write_text("{}\n")
    return final


def everything(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_manifest_lists_every_file_with_its_sha256(tmp_path):
    manifest = verify(write(tmp_path / "sft"))
    assert manifest["files"]["checkpoint/weights"] == SHA256_OF_ABC
    assert sorted(manifest["files"]) == ["checkpoint/weights", "config.yaml", "pool.jsonl"]
    assert manifest["step"] == "sft"
    assert yaml.safe_load((tmp_path / "sft" / "config.yaml").read_text()) == {"ppo": {"kl_coef": 0.01}}
    assert everything(tmp_path) == ["sft"]


def test_about_may_be_filled_until_the_block_ends(tmp_path):
    about = {"step": "sft"}
    with open_artefact(tmp_path / "sft", about):
        about["seconds"] = 3
    assert read_manifest(tmp_path / "sft")["seconds"] == 3


def test_nothing_is_there_until_the_block_ends_or_if_it_fails(tmp_path):
    def half() -> None:
        with open_artefact(tmp_path / "sft", {}) as out:
            (out / "weights").write_text("half")
            assert not (tmp_path / "sft").exists()
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        half()
    assert everything(tmp_path) == []


def test_an_old_artefact_stays_when_its_successor_fails(tmp_path):
    write(tmp_path / "sft", "old")

    def half() -> None:
        with open_artefact(tmp_path / "sft", {}):
            raise KeyError

    with pytest.raises(KeyError):
        half()
    assert (tmp_path / "sft" / "checkpoint" / "weights").read_text() == "old"
    assert verify(write(tmp_path / "sft", "new"))
    assert (tmp_path / "sft" / "checkpoint" / "weights").read_text() == "new"
    assert everything(tmp_path) == ["sft"]


def test_the_digest_is_of_content_not_of_times(tmp_path):
    def make(name: str, weights: str, seconds: float) -> str:
        with open_artefact(tmp_path / name, {"seconds": seconds}) as out:
            (out / "weights").write_text(weights)
            (out / "metrics.jsonl").write_text(json.dumps({"time": seconds}))
        return read_manifest(tmp_path / name)["digest"]

    assert make("a", "same", 1.0) == make("b", "same", 2.0) != make("c", "other", 1.0)


@pytest.mark.parametrize("replacing", [False, True])
def test_killed_at_every_point_the_old_or_the_new_one_is_there_and_whole(tmp_path, replacing):
    """A child dies by SIGKILL at its n-th file operation, for every n until it lives; then the next run looks."""
    outcomes = set()
    for n in range(1, 500):
        run_dir = tmp_path / str(n)
        run_dir.mkdir()
        if replacing:
            write(run_dir / "sft", "old")
        killed = die_at_operation(n, lambda: write(run_dir / "sft", "new"))  # noqa: B023 - called at once
        if (run_dir / "sft" / "manifest.json").exists():
            verify(run_dir / "sft")  # whoever looks before the next run sees a whole one, too
        recover(run_dir)
        assert everything(run_dir) in ([], ["sft"])
        if (run_dir / "sft").exists():
            verify(run_dir / "sft")
            outcomes.add((run_dir / "sft" / "checkpoint" / "weights").read_text())
        else:
            outcomes.add("none")
            assert not replacing
        shutil.rmtree(run_dir)
        if not killed:
            break
    assert not killed
    assert n > 20  # so many operations make a commit; fewer means that the hook counts nothing
    assert outcomes == ({"old", "new"} if replacing else {"none", "new"})


def die_at_operation(n: int, work) -> bool:
    """Whether a forked child doing `work` was killed as it began its n-th open, rename, mkdir, remove or fsync."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)
    count, fsync = 0, os.fsync

    def tick(event: str, _: object = None) -> None:
        nonlocal count
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "fsync"):
            count += 1
            if count == n:
                os.kill(os.getpid(), signal.SIGKILL)

    def counted(handle: int) -> None:
        tick("fsync")
        fsync(handle)

    try:
        os.fsync = counted
        sys.addaudithook(tick)
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def test_every_file_and_folder_is_synced_before_the_artefact_gets_its_name(tmp_path, monkeypatch):
    order: list[str] = []
    sync, rename = checkpoint.sync, Path.rename
    monkeypatch.setattr(checkpoint, "sync", lambda path: (order.append(f"sync {path.name}"), sync(path)))
    monkeypatch.setattr(Path, "rename", lambda self, to: (order.append(f"name {to.name}"), rename(self, to))[1])
    write(tmp_path / "sft")
    named = order.index("name sft")
    before, after = order[:named], order[named + 1 :]
    for name in ("weights", "pool.jsonl", "config.yaml", "checkpoint", ".manifest.json.partial"):
        assert f"sync {name}" in before
    assert before[-1] == "sync .sft.partial"  # the folder, after its manifest was put in
    assert after == [f"sync {tmp_path.name}"]


def damaged(folder: Path) -> str:
    with pytest.raises(MissingError, match=r"damaged|no finished") as caught:
        verify(folder)
    assert caught.value.exit_code == 69
    return caught.value.what


def test_one_flipped_bit_is_found_even_if_size_and_time_are_kept(tmp_path):
    path = write(tmp_path / "sft") / "checkpoint" / "weights"
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    assert damage(tmp_path / "sft") == "checkpoint/weights does not match its checksum"
    os.utime(path, ns=times)
    assert damage(tmp_path / "sft") is None  # what the quick look does not promise
    assert damaged(tmp_path / "sft").endswith("is damaged: checkpoint/weights does not match its checksum")


def test_truncated_missing_and_unlisted(tmp_path):
    folder = write(tmp_path / "sft")
    (folder / "checkpoint" / "weights").write_text("ab")
    assert "checkpoint/weights has 2 bytes, was written with 3" in damaged(folder)
    (folder / "checkpoint" / "weights").unlink()
    assert "checkpoint/weights is missing" in damaged(folder)


def test_a_copied_artefact_is_whole(tmp_path):
    shutil.copytree(write(tmp_path / "sft"), tmp_path / "copy", copy_function=shutil.copyfile)
    assert damage(tmp_path / "copy") is None
    assert verify(tmp_path / "copy")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"files": {}}'])
def test_a_broken_manifest_is_damage(tmp_path, text):
    folder = write(tmp_path / "sft")
    (folder / "manifest.json").write_text(text)
    assert "manifest.json is damaged" in damaged(folder)


def test_an_edited_manifest_is_damage(tmp_path):
    path = write(tmp_path / "sft") / "manifest.json"
    path.write_text(path.read_text().replace("0.01", "0.02"))
    assert "does not match its own checksum" in damaged(tmp_path / "sft")
    manifest = json.loads(path.read_text().replace("0.02", "0.01"))
    write_manifest(tmp_path / "sft", {**manifest, "accepted": {}})
    assert verify(tmp_path / "sft")["accepted"] == {}


def test_no_manifest_is_unfinished(tmp_path):
    (tmp_path / "sft").mkdir()
    assert "no finished artefact" in damaged(tmp_path / "sft")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_or_read_only_disk_says_so_and_keeps_the_old_artefact(tmp_path, monkeypatch, number):
    write(tmp_path / "sft", "old")

    def refuse(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(checkpoint, "sync", refuse)
    with pytest.raises(DiskError, match="cannot write") as caught:
        write(tmp_path / "sft", "new")
    assert caught.value.exit_code == 74
    assert str(tmp_path) in caught.value.what
    assert ("bytes are free" in caught.value.what) == (number != errno.EROFS)
    assert (tmp_path / "sft" / "checkpoint" / "weights").read_text() == "old"
    assert everything(tmp_path) == ["sft"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_really_full(tmp_path):
    if os.system(f"mount -t tmpfs -o size=64k tmpfs {tmp_path} 2>/dev/null") != 0:
        pytest.skip("no right to mount here")
    try:
        with pytest.raises(DiskError, match="the disk is full"):
            write(tmp_path / "sft", "x" * 100_000)
        assert everything(tmp_path) == []
    finally:
        os.system(f"umount {tmp_path}")


def test_a_second_writer_is_refused_and_told_who_holds_the_run(tmp_path):
    read, done = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with locked(tmp_path / "run"):
            os.write(read[1], b"x")
            os.read(done[0], 1)
        os._exit(0)
    try:
        os.read(read[0], 1)
        assert is_locked(tmp_path / "run")
        with pytest.raises(LockedError, match="in use") as caught, locked(tmp_path / "run"):
            pass
        assert caught.value.exit_code == 73
        assert f"process {child} on {os.uname().nodename}" in str(caught.value.where)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for handle in (*read, *done):
            os.close(handle)
    assert not is_locked(tmp_path / "run")
    with locked(tmp_path / "run"):  # a killed holder leaves nothing to clean up
        pass


@pytest.mark.parametrize("left", [b"", b'{"pid": 999999999, "host": "HOST", "since": "then"}'])
def test_a_second_writer_is_not_told_of_the_holder_before(tmp_path, left):
    """The holder has the lock a moment before it has written its name; the file says what a killed one left."""
    (tmp_path / ".lock").write_bytes(left.replace(b"HOST", os.uname().nodename.encode()))
    read, write = os.pipe()
    child = os.fork()
    if not child:
        handle = os.open(tmp_path / ".lock", os.O_RDWR)
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.write(write, b"x")
        time.sleep(0.1)
        name = {"pid": os.getpid(), "host": os.uname().nodename, "since": "now"}
        (tmp_path / ".lock").write_text(json.dumps(name))
        time.sleep(60)
    try:
        os.read(read, 1)
        with pytest.raises(LockedError) as caught, locked(tmp_path):
            pass
        assert f"process {child} on" in str(caught.value.where)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)
