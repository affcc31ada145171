"""Two processes over gloo that are not alike, or of which one does not come, stops or waits for ever."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf.errors import ConfigError, MissingError
from rlhf.processes.roll_call import compare

ROOT = Path(__file__).resolve().parents[2]
SETUP = """
import sys, time
from pathlib import Path
import torch
from torch import distributed
from rlhf.provenance import meter
from rlhf.processes import roll_call
from rlhf.processes import team
from rlhf.processes import watch
from rlhf.config import load
from rlhf.errors import RlhfError
from rlhf.pipeline import expand
distributed.init_process_group("gloo")
recipe = load("tiny").recipe
step = expand(recipe)[0]
"""
ROLL_CALL = (
    SETUP
    + """
if team.rank():
    CHANGE
try:
    roll_call.hold(step, recipe, Path())
    print("alike")
except RlhfError as error:
    print(error)
"""
)
WATCHED = (
    SETUP
    + """
def hangs():
    while True:
        if not NAPS:
            time.sleep(1000)
        time.sleep(0.01)
        time.sleep(0.011)
        time.sleep(0.012)
        time.sleep(0.013)
with watch.over("ppo", Path(), every=0.2, patience=2.0):
    distributed.barrier()
    if team.rank():
        Path("ready").touch()
        hangs()
    distributed.barrier()
"""
)


def start(folder, script):
    """Two processes of it; how to end them is the caller's."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    environment = {**os.environ, **place, "PYTHONPATH": str(ROOT), "RLHF_DEBUG": "1"}
    running = []
    for rank in (0, 1):
        with (folder / f"said-{rank}").open("w") as file:
            whole = environment | {"RANK": str(rank)}
            running.append(subprocess.Popen(command, cwd=folder, env=whole, stdout=file, stderr=file))
    return running


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pass", "alike"),
        ("meter.versions()['torch'] = '1.0'", "differs from process 0 on {host}: torch is 1.0, there {torch}"),
        ("recipe = load('tiny', ['base.steps=7']).recipe", "differs from process 0 on {host}: settings is "),
        ("roll_call.engine.named = lambda: 'fsdp'", "differs from process 0 on {host}: engine is fsdp, there ddp"),
        ("roll_call.free_bytes = lambda _: 7", "process 1 on {host} has 7 bytes free"),
    ],
)
def test_every_process_hears_which_one_is_not_like_the_first(tmp_path, change, message):
    from torch import __version__

    message = message.format(host=socket.gethostname(), torch=__version__[:12])
    for process in start(tmp_path, ROLL_CALL.replace("CHANGE", change)):
        process.wait(timeout=120)
    for rank in (0, 1):
        assert message in (tmp_path / f"said-{rank}").read_text()


def heard(folder, words, seconds=30):
    """What the first process has said, once all words were."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        said = (folder / "said-0").read_text()
        if all(word in said for word in words):
            break
        time.sleep(0.1)
    return said


@pytest.fixture
def pair(tmp_path):
    """Starts two processes of a script, waits until they work, and ends them."""
    running = []

    def begin(naps):
        running.extend(start(tmp_path, WATCHED.replace("NAPS", naps)))
        until = time.monotonic() + 100
        while not (tmp_path / "ready").exists() and time.monotonic() < until:
            time.sleep(0.05)
        return running

    yield begin
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.distributed
def test_a_process_that_was_stopped_is_named_with_its_host_its_stage_and_where_it_was(pair, tmp_path):
    _, second = pair("True")
    time.sleep(0.6)  # it moves: nothing is said
    second.send_signal(signal.SIGSTOP)
    said = heard(tmp_path, ["does not answer", "hangs"])
    assert f"ppo: process 1 on {socket.gethostname()} does not answer for 2 s" in said
    assert "in hangs" in said


@pytest.mark.distributed
def test_when_nobody_moves_it_is_said_where_everyone_waits(pair, tmp_path):
    pair("False")
    said = heard(tmp_path, ["has been where it is", "process 1", "in hangs", "rank-*.stack"])
    assert "ppo: every process has been where it is for 2 s" in said
    before, _, after = said.partition(f"process 1 on {socket.gethostname()} waits here:")
    assert "barrier" in before
    assert "in hangs" in after
    time.sleep(1)
    assert "in hangs" in (tmp_path / "logs" / "rank-1.stack").read_text()


@pytest.mark.distributed
def test_while_one_still_moves_nothing_is_said(pair, tmp_path):
    """One waits for the other, which works: that is no hang."""
    pair("True")
    assert "ppo" not in heard(tmp_path, ["has been"], seconds=4)


def test_an_artefact_that_one_process_does_not_see_is_missing():
    here, there = ({"host": host, "torch": "2", "artefact sft": seen} for host, seen in (("a", "1f"), ("b", "missing")))
    with pytest.raises(MissingError, match="process 1 on b differs from process 0 on a: artefact sft is missing"):
        compare([here, there])


def test_what_else_differs_is_named_too():
    with pytest.raises(ConfigError) as caught:
        compare([{"host": "a", "torch": "2", "code": "x"}, {"host": "a", "torch": "2", "code": "x"}, {"host": "c"}])
    assert caught.value.what == "process 2 on c differs from process 0 on a: torch is missing, there 2"
    assert "also: code" in caught.value.hints
