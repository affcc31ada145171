"""What users say over many turns under an instruction, which may be changed or withdrawn on the way (3.3)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from rlhf.data.instructions import WITHDRAWAL, Instruction
from rlhf.data.types import Dialogue
from rlhf.errors import ConfigError

TRIES = 1000  # draws after which the lists are taken to hold nothing else


class Drawn(Protocol):
    """Whatever instructions can be drawn from."""

    def draw(self, rng: random.Random) -> Instruction: ...


@dataclass(frozen=True, slots=True)
class Without:
    """Lists from which no instruction comes that holds one of these texts."""

    lists: Drawn
    unseen: tuple[str, ...]

    def draw(self, rng: random.Random) -> Instruction:
        drawn = (self.lists.draw(rng) for _ in range(TRIES))
        found = next((instruction for instruction in drawn if not self.names(instruction.text)), None)
        if found is None:
            raise ConfigError("without those of gatt.unseen there is no instruction left", where="gatt.unseen")
        return found

    def names(self, text: str) -> bool:
        """Whether an instruction holds one of the texts."""
        return any(unseen in text for unseen in self.unseen)

    def instead(self, rows: Sequence[Conversation], seed: int) -> list[Conversation]:
        """The conversations, with another instruction where theirs holds one of the texts."""
        rng, found = random.Random(f"unseen/{seed}"), []
        for c in rows:
            drawn = self.draw(rng) if self.names(c.instruction) else Instruction(c.instruction, c.short)
            found.append(replace(c, instruction=drawn.text, short=drawn.short))
        return found


@dataclass(frozen=True, slots=True)
class Said:
    """The user's part of a dialogue, and whether it has the safety tag."""

    users: tuple[str, ...]
    is_safety: bool
    answers: tuple[str, ...] = ()
    """What was answered there; none where the policy spoke for the user."""


@dataclass(frozen=True, slots=True)
class Change:
    """At a user turn (0 is the first) the user says something that ends the first instruction."""

    turn: int
    says: Instruction
    """Said before the question of that turn: another instruction, or that there is none any more."""
    holds: str
    """The instruction from that turn on; empty where it was withdrawn."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a user says over many turns, under one instruction given before the first."""

    id: str
    instruction: str
    user_turns: tuple[str, ...]
    is_safety: tuple[bool, ...]  # the tag of every user turn
    source: str
    short: str = ""
    """The less verbose form of the instruction; empty where it has none."""
    change: Change | None = None
    answers: tuple[str, ...] = ()
    """What was answered in the data, which knew of no instruction; none in the micro-world."""

    def tracks(self) -> list[Conversation]:
        """The questions under one instruction each: the first up to the change, what holds then from the start on."""
        if self.change is None:
            return [self]
        end = self.change.turn
        first = replace(self, user_turns=self.user_turns[:end], is_safety=self.is_safety[:end], change=None)
        return [first, replace(self, id=f"{self.id}/then", instruction=self.change.holds, change=None)]

    def in_force(self, turn: int) -> str:
        """The instruction that holds in this turn; empty where it was withdrawn."""
        return self.change.holds if self.change and turn >= self.change.turn else self.instruction

    def said(self, turn: int, *, short: bool = False) -> str:
        """What stands in this user turn after the first: the question, and at a change what changes it."""
        if self.change is None or turn != self.change.turn:
            return self.user_turns[turn]
        return f"{self.change.says.short if short else self.change.says.text} {self.user_turns[turn]}"


def changed(c: Conversation, instead: Instruction | None, withdrawal: str, *, at: int) -> Conversation:
    """The conversation with its instruction replaced at a turn, or withdrawn where there is none to replace it."""
    says = instead or Instruction(withdrawal, withdrawal)
    return replace(c, change=Change(at, says, instead.text if instead else ""))


def under_instructions(
    said: Sequence[Said], lists: Drawn, count: int, *, turns: tuple[int, int], seed: int, prefix: str, source: str
) -> list[Conversation]:
    """`count` conversations from what users said in dialogues that are long enough, each under its own instruction.

    A dialogue serves again, under another instruction, where there are too few; none gives none.
    """
    least, most = turns
    rng, usable = random.Random(seed), [s for s in said if len(s.users) >= least]
    rng.shuffle(usable)
    rows = []
    for i in range(count if usable else 0):
        one, instruction = usable[i % len(usable)], lists.draw(rng)
        spoken = min(most, len(one.users))
        rows.append(
            Conversation(
                f"{prefix}-{i}",
                instruction.text,
                one.users[:spoken],
                (one.is_safety,) * spoken,
                source,
                instruction.short,
                answers=one.answers[:spoken],
            )
        )
    return rows


def said_in(dialogue: Dialogue, *, is_safety: bool) -> Said:
    """What the user says in a dialogue: nothing, where a system message would compete with an instruction."""
    if dialogue.turns[0].role == "system":
        return Said((), is_safety)
    users, answers = ([turn.content for turn in dialogue.turns if turn.role == role] for role in ("user", "assistant"))
    return Said(tuple(users), is_safety, tuple(answers))


def with_changes(
    rows: Sequence[Conversation], share: float, *, lists: Drawn, seed: int, withdrawal: str = WITHDRAWAL
) -> list[Conversation]:
    """A share of the conversations with a change at a random turn after the first: half of them withdraw (ours)."""
    rng, found = random.Random(f"changes/{seed}"), []
    for c in rows:
        if len(c.user_turns) > 1 and rng.random() < share:
            instead = another(c, lists, rng) if rng.random() < 0.5 else None
            c = changed(c, instead, withdrawal, at=rng.randrange(1, len(c.user_turns)))
        found.append(c)
    return found


def another(c: Conversation, lists: Drawn, rng: random.Random) -> Instruction:
    """An instruction that is not the conversation's own; its own again if the lists know no other."""
    drawn = [lists.draw(rng) for _ in range(20)]
    return next((instruction for instruction in drawn if instruction.text != c.instruction), drawn[0])
