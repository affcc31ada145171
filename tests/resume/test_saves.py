"""Saves: whole or not there, whatever kills the writer; any damage is found and named; the one before is taken then.

What goes on is counted by numbers worked by hand: a loop that adds up its steps. Stages and weights: test_lives.py.
"""

import io
import json
import os
import shutil

import pytest
from rich.console import Console

from rlhf.errors import MissingError, PreemptedError
from rlhf.resume import saves as module
from rlhf.resume.preemption import Stop
from rlhf.resume.saves import Saves
from rlhf.tracking.track import Tracker


class World:
    """A step that works in `out`, life after life."""

    def __init__(self, out):
        self.out, self.screen, self.events, self.stop, self.track = out, io.StringIO(), [], Stop(), None
        out.mkdir()

    def life(self, *, every=0.0, key="key", strict=False):
        """What a new process of the step begins with."""
        self.die()
        track = self.track = Tracker(self.out, run="test", step="sft", console=Console(file=self.screen, width=300))
        note = lambda event, **more: self.events.append((event, more))  # noqa: E731
        self.stop = Stop()
        return Saves(self.out, key=key, track=track, every=every, stop=self.stop, strict=strict, note=note)

    def die(self):
        """A process that dies closes its files."""
        if self.track is not None:
            self.track.close()

    def folders(self):
        return sorted(path.name for path in (self.out / "resume").iterdir())

    def metrics(self):
        return [json.loads(line)["loss"] for line in (self.out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # durability is proved in test_checkpoint.py; this is slow
    made = World(tmp_path / "out")
    yield made
    made.die()


class Sum:
    """Something that learns: it adds up what it is shown."""

    def __init__(self):
        self.total = 0

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state_dict):
        self.total = state_dict["total"]


class KilledError(BaseException):
    """Nothing that anybody catches."""


def work(saves, *, until=None, n=6):
    """Add up 0 ... n - 1, one metric a step; die in the middle of step `until`."""
    learner = Sum()
    for i in saves.range(n, learner=learner):
        saves.track.log({"loss": float(i)}, step=i)
        if i == until:
            raise KilledError
        learner.total += i
    return learner.total


@pytest.mark.parametrize("until", range(6))
def test_a_loop_goes_on_where_it_was_killed_and_logs_each_step_once(world, until):
    with pytest.raises(KilledError):
        work(world.life(), until=until)
    assert work(world.life()) == 15  # 0 + 1 + 2 + 3 + 4 + 5
    assert world.metrics() == [0, 1, 2, 3, 4, 5]
    resumed = [more["number"] for event, more in world.events if event == "resume"]
    assert resumed == ([until] if until else [])  # the save after step n is number n + 1


def test_two_saves_stay_and_never_fewer_than_one_good_one(world):
    work(world.life())
    assert world.folders() == ["save-000005", "save-000006"]


def test_a_step_that_takes_less_than_the_interval_writes_nothing(world):
    assert work(world.life(every=600)) == 15
    assert not (world.out / "resume").exists()


def test_saves_take_no_more_than_their_share_of_the_time(world, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: clock[0])
    saves = world.life(every=10)
    saves._cost = 3.0  # a save takes 3 s: at 2% of the time, one in 150 s
    clock[0] = 149
    assert not saves.due()
    clock[0] = 151
    assert saves.due()
    saves._cost = 0.1
    clock[0] = 9
    assert not saves.due()
    clock[0] = 11
    assert saves.due()


def damages(path):
    """Every kind of damage at eight places of a file: what it is called, and how to do it."""
    size = path.stat().st_size
    places = sorted({size * i // 8 for i in range(8)} | {size - 1})

    def edit(change):
        data = bytearray(path.read_bytes())
        change(data)
        path.write_bytes(bytes(data))

    for place in places:
        yield f"flip {place}", lambda place=place: edit(lambda data: data.__setitem__(place, data[place] ^ 1))
        yield f"cut {place}", lambda place=place: edit(lambda data: data.__delitem__(slice(place, None)))
        span = slice(place, place + 16)
        blank = bytes(len(path.read_bytes()[span]))
        if path.read_bytes()[span] != blank:
            yield f"zero {place}", lambda span=span, blank=blank: edit(lambda data: data.__setitem__(span, blank))
    yield "delete", path.unlink


def test_damage_to_any_file_of_a_save_is_found_and_the_one_before_taken(world):
    with pytest.raises(KilledError):
        work(world.life(), until=4)
    kept, tried = shutil.copytree(world.out, world.out.parent / "kept"), 0
    newest = sorted((kept / "resume").iterdir())[-1]
    for name in sorted(path.name for path in newest.iterdir()):
        for what, damage in damages(world.out / "resume" / newest.name / name):
            damage()
            world.screen.truncate(0)
            saves = world.life()
            assert work(saves) == 15, (name, what)
            assert f"{newest.name} of sft is damaged" in world.screen.getvalue(), (name, what)
            assert [more["number"] for event, more in world.events if event == "resume"][-1] == 3
            assert world.metrics() == [0, 1, 2, 3, 4, 5]
            tried += 1
            shutil.rmtree(world.out)
            shutil.copytree(kept, world.out)
    assert tried >= 60


def test_all_damaged_begins_anew_and_says_so_or_stops_with_strict(world):
    with pytest.raises(KilledError):
        work(world.life(), until=4)
    for path in (world.out / "resume").glob("save-*/state.json"):
        path.write_text("{}")
    with pytest.raises(MissingError, match=r"save-000004 is damaged: state.json has 2 bytes") as caught:
        work(world.life(strict=True))
    assert caught.value.exit_code == 69
    assert work(world.life()) == 15
    assert world.screen.getvalue().count("warning: save-") == 3  # once for --strict
    assert [event for event, _ in world.events].count("damaged save") == 3


def test_two_saves_that_changed_places_or_came_from_elsewhere_are_refused(world):
    with pytest.raises(KilledError):
        work(world.life(), until=4)
    resume = world.out / "resume"
    (resume / "save-000003").rename(resume / "old")
    (resume / "save-000004").rename(resume / "save-000003")
    (resume / "old").rename(resume / "save-000004")
    assert work(world.life()) == 15
    assert "it is save 3 under another name" in world.screen.getvalue()
    assert work(world.life(key="another")) == 15
    assert "it was made from other settings, inputs or code" in world.screen.getvalue()


def test_files_of_a_finished_part_are_vouched_for_by_the_saves_of_the_next(world):
    saves = world.life()
    (world.out / "weights").write_text("first part")
    saves.finish("first")
    with pytest.raises(KilledError):
        work(saves, until=2)
    assert world.life().passed("first")
    assert not world.life().passed("loop")
    (world.out / "weights").write_text("first pArt")
    assert not world.life().passed("first")
    assert "weights, which was finished before it, is not as it was" in world.screen.getvalue()


def test_asked_to_stop_it_finishes_the_step_saves_and_leaves_with_75(world):
    saves = world.life(every=600)
    done = []

    def asked_in_step_two():
        for i in saves.range(6, learner=Sum()):
            done.append(i)
            if i == 2:
                world.stop.signalled()

    with pytest.raises(PreemptedError) as caught:
        asked_in_step_two()
    assert (done, caught.value.exit_code) == ([0, 1, 2], 75)
    assert list(world.life().range(6, learner=Sum())) == [3, 4, 5]


def test_a_second_signal_or_one_that_nobody_looks_for_quits_at_once(world):
    stop = Stop()
    with pytest.raises(KeyboardInterrupt):
        stop.signalled()
    with stop.patience():
        stop.signalled()
        with pytest.raises(KeyboardInterrupt):
            stop.signalled()
