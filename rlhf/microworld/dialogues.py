"""Conversations of the micro-world as Ghost Attention and its test read them (3.3)."""

from __future__ import annotations

import random

from rlhf.data import instructions
from rlhf.data.conversations import Conversation
from rlhf.microworld import corpus
from rlhf.microworld.instructions import WITHDRAWAL, short_form
from rlhf.microworld.speakers import draw_instruction

__all__ = ["LISTS", "WITHDRAWAL", "conversations"]


class _World:
    """Every instruction of the micro-world, as something to draw from."""

    def draw(self, rng: random.Random) -> instructions.Instruction:
        drawn = draw_instruction(rng)
        return instructions.Instruction(drawn.text, drawn.short)


LISTS = _World()


def conversations(
    rng: random.Random, n: int, *, turns: tuple[int, int], held_out: bool, prefix: str
) -> list[Conversation]:
    """`n` conversations under an instruction, every user turn with its safety tag."""
    made = corpus.conversations(rng, n, turns=turns, held_out=held_out, instruction_share=1.0)
    rows = []
    for i, (instruction, users) in enumerate(made):
        text, tags = instruction or "", tuple(corpus.is_unsafe(user) for user in users)
        rows.append(Conversation(f"{prefix}-{i}", text, tuple(users), tags, corpus.SOURCE, short_form(text)))
    return rows
