"""Two processes of a machine: one makes the records, the other opens them, whatever befalls the first.

Their collectives are files here, so that one may die without the other; tests/distributed/test_once.py has a group.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import os, signal, sys, time
from array import array
from pathlib import Path
from rlhf.data.types import Prompt, Turn
from rlhf.errors import DataError
from rlhf.processes import once, team

def wait(*names):
    while not all(Path(name).exists() for name in names):
        time.sleep(0.01)

def call(said):
    if said:
        Path("word.new").write_text(said)
        os.replace("word.new", "word")
    wait("word")
    return Path("word").read_text()

def meet():
    Path(f"met-{team.rank()}").touch()
    wait(*MET)

team.call, team.meet = call, meet

def fill(spools):
    for number in range(200):
        Path(f"made-by-{team.rank()}").open("a").write(f"{number}\\n")
        MISHAP
        spools["asked"].append(Prompt(f"p{number}", (Turn("user", f"how {number} ?"),), "mine", is_safety=False))
    spools["asked"].lists["odd"] = array("Q", range(1, 200, 2))
    spools["none"].lists["none"] = array("Q")

try:
    spools = once.filled(Path("runs/mine/sft"), {"asked": Prompt, "none": Prompt}, fill)
    asked = spools["asked"]
    print([(row.id, row.turns[0].content) for row in asked], list(asked.lists["odd"]), len(spools["none"]))
except DataError as error:
    print("met:", error)
"""
BOTH = '("met-0", "met-1")'
TOLD = f"{[(f'p{i}', f'how {i} ?') for i in range(200)]} {list(range(1, 200, 2))} 0\n"


def start(folder, size=2, met=BOTH, mishap="pass"):
    """So many processes of one machine, each begun alike."""
    machine = folder / "machine"
    machine.mkdir(exist_ok=True)
    for left in (*folder.glob("word"), *folder.glob("met-*"), *folder.glob("made-by-*")):
        left.unlink()
    command = [sys.executable, "-c", SCRIPT.replace("MET", met, 1).replace("MISHAP", mishap)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(machine), "WORLD_SIZE": str(size)}
    return [
        subprocess.Popen(command, cwd=folder, env={**environment, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(size)
    ]


def said(running):
    try:
        return [process.communicate(timeout=100)[0] for process in running]
    finally:
        for process in running:
            process.kill()


def lines(folder, rank):
    path = folder / f"made-by-{rank}"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_the_first_process_makes_them_and_the_other_opens_them(tmp_path):
    assert said(start(tmp_path)) == [TOLD, TOLD]
    assert (lines(tmp_path, 0), lines(tmp_path, 1)) == (200, 0)
    assert not list((tmp_path / "machine").iterdir())


def test_a_process_alone_makes_them_without_a_name(tmp_path):
    look = "assert not os.listdir('machine')"
    assert said(start(tmp_path, size=1, mishap=look)) == [TOLD]


def test_of_a_killed_maker_the_other_one_makes_them_anew(tmp_path):
    die = "if number == 150 and team.rank() == 0: os.kill(os.getpid(), signal.SIGKILL)"
    assert said(start(tmp_path, met='("met-1",)', mishap=die)) == ["", TOLD]
    assert (lines(tmp_path, 0), lines(tmp_path, 1)) == (151, 200)
    assert not list((tmp_path / "machine").iterdir())


def test_a_row_that_is_to_blame_is_named_by_every_process_and_nothing_of_it_stays(tmp_path):
    error = "if number == 150: raise DataError('too long', where='row 150')"
    for words in said(start(tmp_path, mishap=error)):
        assert words.startswith("met: too long")
        assert "row 150" in words
    assert (lines(tmp_path, 0), lines(tmp_path, 1)) == (151, 151)
    assert not [path for path in (tmp_path / "machine").rglob("*") if path.is_file() and path.name != "lock"]


def hanging(folder, how):
    """Two processes, of which one makes the records, and hangs as it is told."""
    running, until = start(folder, mishap=how), time.monotonic() + 60
    while not (folder / "hangs").exists() and time.monotonic() < until:
        time.sleep(0.02)
    return running


def test_the_next_start_removes_what_a_killed_one_left(tmp_path):
    hang = "if number == 150: Path('hangs').touch(); time.sleep(100)"
    running = hanging(tmp_path, hang)
    for process in running:
        process.send_signal(signal.SIGKILL)
    said(running)
    assert list((tmp_path / "machine").iterdir())
    assert said(start(tmp_path)) == [TOLD, TOLD]
    assert not list((tmp_path / "machine").iterdir())


def test_who_waits_waits_outside_of_the_group(tmp_path):
    """The maker works; the other one is at the lock of a folder that only its owner may read."""
    hang = "if number == 150: Path('hangs').touch(); wait('go')"
    running = hanging(tmp_path, hang)
    (folder,) = (tmp_path / "machine").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not list(tmp_path.glob("met-*"))
    (tmp_path / "go").touch()
    assert said(running) == [TOLD, TOLD]
