"""Shards: a killed run's chunks are read back in turn; a torn or damaged line and what follows are made again."""

import json

import pytest

from rlhf.errors import MissingError, PreemptedError
from rlhf.resume.preemption import Stop
from rlhf.resume.shards import Shards, afresh, generated, keeping


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


class World:
    def __init__(self, folder):
        self.path, self.said, self.made, self.stop = folder / "resume" / "shards.jsonl", [], [], Stop()
        self.path.parent.mkdir()

    def life(self, chunks, *, key="key", strict=False):
        """Ask for squares of 0 ... chunks - 1; what was answered, and what had to be made."""
        shards = Shards(
            self.path, key=key, step="rejection", every=600, stop=self.stop, strict=strict, say=self.said.append
        )
        self.made = []

        def make(n):
            self.made.append(n)
            return {"square": n * n, "half": n / 3}

        try:
            found = [shards(f"question {n}", lambda n=n: make(n)) for n in range(chunks)]
        finally:
            shards.close()
        return [row["square"] for row in found]


def test_what_a_killed_life_made_is_read_back_and_the_rest_made(world):
    assert world.life(3) == [0, 1, 4]
    assert world.life(5) == [0, 1, 4, 9, 16]
    assert world.made == [3, 4]
    assert world.life(5) == [0, 1, 4, 9, 16]
    assert world.made == []


def test_tokens_are_counted_by_whoever_listens_also_where_a_loop_has_saves_of_its_own():
    counts = []
    with keeping(afresh, lambda *told: counts.append(told)):
        generated(3, "fused")
        with keeping(afresh):
            generated(4, "vllm")
    generated(5, "fused")  # nobody listens
    assert counts == [(3, "fused"), (4, "vllm")]


def test_floats_come_back_to_the_last_bit(world):
    world.life(4)
    assert json.loads(world.path.read_text().splitlines()[2])["value"]["half"] == 2 / 3


@pytest.mark.parametrize("cut", [1, 5, 40, 100])
def test_a_line_that_the_kill_tore_is_made_again_without_a_word(world, cut):
    world.life(3)
    world.path.write_bytes(world.path.read_bytes()[:-cut])
    assert world.life(3) == [0, 1, 4]
    assert (world.made, world.said) == ([2], [])


def test_a_flipped_bit_is_said_and_what_follows_it_made_again_or_strict_stops(world):
    world.life(4)
    data = world.path.read_bytes()
    place = data.index(b'"square": 1')
    world.path.write_bytes(data[: place + 10] + b"2" + data[place + 11 :])
    with pytest.raises(MissingError, match="line 2 does not match its checksum"):
        world.life(4, strict=True)
    assert world.life(4) == [0, 1, 4, 9]
    assert world.made == [1, 2, 3]
    assert "line 2 does not match its checksum" in world.said[0]


def test_lines_of_another_step_or_in_another_order_are_not_taken(world):
    world.life(3)
    assert world.life(3, key="another") == [0, 1, 4]
    assert world.made == [0, 1, 2]
    lines = world.path.read_bytes().splitlines(keepends=True)
    world.path.write_bytes(lines[1] + lines[0] + lines[2])
    assert world.life(3, key="another") == [0, 1, 4]
    assert world.made == [0, 1, 2]


def test_asked_to_stop_the_chunk_is_kept_and_the_run_left(world):
    world.stop.asked = True
    with pytest.raises(PreemptedError):
        world.life(3)
    world.stop = Stop()
    assert world.life(3) == [0, 1, 4]
    assert world.made == [1, 2]
