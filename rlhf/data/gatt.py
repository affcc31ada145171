"""Ghost Attention: an instruction that holds for a whole dialogue, given once (paper 3.3, A.3.5).

1. take the user's turns u_1 .. u_n and an instruction that is to hold throughout
2. write the instruction to every user turn, and sample the answers from the newest policy          ``spread``
3. for training, leave the instruction in the first turn only                                ``training_dialogue``
4. earlier answers were sampled under a context that is now gone: no loss on them, only on the last  ``chat.labels``
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlhf.data.types import Dialogue, Turn


def spread(instruction: str, turns: Sequence[Turn], *, separator: str = " ") -> tuple[Turn, ...]:
    """The turns with the instruction before the text of every user turn: the context answers are sampled in.

    Without an instruction, as after one was withdrawn, the turns come back as they are.
    """
    if any(turn.role == "system" for turn in turns):
        raise ValueError("the dialogue already has a system message; an instruction would compete with it")
    before = f"{instruction}{separator}" if instruction else ""
    return tuple(Turn("user", f"{before}{turn.content}") if turn.role == "user" else turn for turn in turns)


def training_dialogue(
    id: str, instruction: str, users: Sequence[str], answers: Sequence[str], *, source: str
) -> Dialogue:
    """The row to train on: the instruction as system message, which the first user turn carries, and nowhere else.

    Args:
        instruction: the form to show, long or short.
        users, answers: n plain user turns, and the n answers sampled under ``spread``.
    """
    if len(users) != len(answers) or not users:
        raise ValueError(f"every user turn needs its answer (got {len(users)} turns, {len(answers)} answers)")
    spoken = [turn for user, answer in zip(users, answers, strict=True) for turn in exchange(user, answer)]
    return Dialogue(id, (Turn("system", instruction), *spoken), source)


def ends(turns: int, cuts: int, rng: random.Random) -> list[int]:
    """The turns at which a conversation of so many is taken to end: one of each of `cuts` equal stretches of it.

    So late turns are trained as often as early ones. No row ends with the first turn, where nothing is to be kept yet,
    unless there is no other.
    """
    first = min(2, turns)
    count = turns - first + 1
    cuts = min(cuts, count)
    return [first + rng.randrange(count * i // cuts, count * (i + 1) // cuts) for i in range(cuts)]


def exchange(user: str, answer: str) -> tuple[Turn, Turn]:
    """A question and its answer."""
    return Turn("user", user), Turn("assistant", answer)
