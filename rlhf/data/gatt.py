"""Ghost Attention: an instruction that holds for a whole dialogue, given once (paper 3.3, A.3.5).

1. take the user's turns u_1 .. u_n and an instruction that is to hold throughout
2. write the instruction to every user turn, and sample the answers from the newest policy          ``spread``
3. for training, leave the instruction in the first turn only                                ``training_dialogue``
4. earlier answers were sampled under a context that is now gone: no loss on them, only on the last    ``TRAIN_ON``
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf.data.types import Dialogue, Turn

# What `rlhf.data.chat.labels` is to train on: "set the loss to 0 for all the tokens from the previous turns".
TRAIN_ON: Literal["last_answer"] = "last_answer"


@dataclass(frozen=True, slots=True)
class Constraint:
    """One kind of thing an instruction may ask for.

    Attributes:
        name: the short form's word: ``Figure`` gives "Figure: Napoleon."
        sentence: the long form with one ``{}``: ``Always act as {} from now.``
        values: what may stand there.
    """

    name: str
    sentence: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.sentence.count("{}") != 1 or not self.values:
            raise ValueError(
                f"constraint {self.name!r} needs values and a sentence with one {{}} (got {self.sentence!r})"
            )


# The three kinds of A.3.5. Hobbies and figures are lists that the policy itself is asked for, so that it knows them.
HOBBY, LANGUAGE, FIGURE = "Hobby", "Language", "Figure"
SENTENCES = {HOBBY: "You enjoy {}.", LANGUAGE: "Speak in {}.", FIGURE: "Always act as {} from now."}


@dataclass(frozen=True, slots=True)
class Instruction:
    """What to sample with, and what the training row says: the same, or less verbose half of the time."""

    full: str
    shown: str


def build_instruction(rng: random.Random, constraints: Sequence[Constraint], *, shorten: float = 0.5) -> Instruction:
    """A random combination of constraints, each kind at most once; ``shown`` is the short form with that probability.

    The number of constraints is uniform in 1..len(constraints), which is our choice: the paper says "randomly
    combining".
    """
    if not constraints:
        raise ValueError("an instruction needs at least one constraint")
    if not 0 <= shorten <= 1:
        raise ValueError(f"shorten is a probability (got {shorten})")
    chosen = rng.sample(constraints, rng.randint(1, len(constraints)))
    values = [(constraint, rng.choice(constraint.values)) for constraint in chosen]
    full = " ".join(constraint.sentence.format(value) for constraint, value in values)
    short = " ".join(f"{constraint.name}: {value}." for constraint, value in values)
    return Instruction(full, short if rng.random() < shorten else full)


def spread(instruction: str, turns: Sequence[Turn], *, separator: str = " ") -> tuple[Turn, ...]:
    """The turns with the instruction before the text of every user turn: the context answers are sampled in."""
    if any(turn.role == "system" for turn in turns):
        raise ValueError("the dialogue already has a system message; an instruction would compete with it")
    return tuple(
        Turn("user", f"{instruction}{separator}{turn.content}") if turn.role == "user" else turn for turn in turns
    )


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


def exchange(user: str, answer: str) -> tuple[Turn, Turn]:
    """A question and its answer."""
    return Turn("user", user), Turn("assistant", answer)
