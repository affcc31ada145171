"""How a reply may be asked to sound: a word to start or to end it with, or a role, which is one of each.

The words occur nowhere else in the language. Every instruction is known and none is held out: a model of this size does
not learn in minutes to copy a word it was told, and whether it can is not what the recipe is about. What is held out is
what is asked under them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from rlhf.microworld.language import tidy

Position = Literal["start", "end", "role"]

_WORDS = "lantern pebble comet amber cedar ember hazel maple pearl raven tulip willow"
STYLE_WORDS = tuple(_WORDS.split())
ROLES = {"pirate": ("arr", "matey"), "robot": ("beep", "boop"), "cat": ("purr", "meow"), "knight": ("hark", "sire")}
_STYLES = frozenset(STYLE_WORDS).union(*ROLES.values())


@dataclass(frozen=True, slots=True)
class Instruction:
    """Start or end with ``word``, or talk like the role ``word``."""

    position: Position
    word: str

    @property
    def text(self) -> str:
        """As it is given, in a system message or at the start of the user's."""
        if self.position == "role":
            return f"always talk like a {self.word}"
        return f"always {self.position} with {self.word}"

    @property
    def short(self) -> str:
        """The less verbose variant that Ghost Attention trains with (paper 3.3)."""
        return f"{self.position} : {self.word}"

    @property
    def affixes(self) -> tuple[str | None, str | None]:
        """(first word, last word) that a reply must have; None where any will do."""
        if self.position == "role":
            return ROLES[self.word]
        return (self.word, None) if self.position == "start" else (None, self.word)

    def wrap(self, reply: str) -> str:
        """The reply in this style."""
        return " ".join(word for word in (self.affixes[0], reply, self.affixes[1]) if word)


WORD_INSTRUCTIONS = tuple(Instruction(position, word) for word in STYLE_WORDS for position in ("start", "end"))
ROLE_INSTRUCTIONS = tuple(Instruction("role", role) for role in ROLES)

WITHDRAWAL = "forget that ."  # an instruction is no longer wanted

_LONG = rf"always (?:(start|end) with ([a-z]+)|talk like a ({'|'.join(ROLES)}))"
_SHORT = rf"(start|end) : ([a-z]+)|role : ({'|'.join(ROLES)})"
_INSTRUCTION = re.compile(rf"\b(?:{_LONG}|{_SHORT})\b(?: ?[.:,])?")
_WITHDRAWAL = re.compile(re.escape(WITHDRAWAL))


def split_instruction(text: str) -> tuple[Instruction | None, str]:
    """The last instruction in a message, long or short, and the message without any; None where there is none."""
    text = tidy(text)
    instruction = None
    for found in _INSTRUCTION.finditer(text):
        position, word, role = (found[group] or found[group + 3] for group in (1, 2, 3))
        if role:
            instruction = Instruction("role", role)
        else:
            instruction = Instruction("start" if position == "start" else "end", word)
    return instruction, tidy(_WITHDRAWAL.sub(" ", _INSTRUCTION.sub(" ", text)))


def withdraws(text: str) -> bool:
    """Whether a message takes an earlier instruction back and gives no other."""
    return _WITHDRAWAL.search(tidy(text)) is not None and split_instruction(text)[0] is None


def short_form(text: str) -> str:
    """``always end with lantern`` -> ``end : lantern``; a text without an instruction comes back as it is."""
    instruction, _ = split_instruction(text)
    return instruction.short if instruction else text


def unwrap(text: str, asked: Instruction | None) -> tuple[str | None, str, str | None]:
    """A reply as (style word in front, the rest, style word at the end).

    The words of ``asked`` count as style words too: a user may ask for one that the language does not know.
    """
    words = text.split()
    first, last = asked.affixes if asked else (None, None)
    start = words.pop(0) if words and (words[0] in _STYLES or words[0] == first) else None
    end = words.pop() if words and (words[-1] in _STYLES or words[-1] == last) else None
    return start, " ".join(words), end
