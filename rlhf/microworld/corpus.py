"""The data sets of the micro-world, written on the spot from a seed: demonstrations, prompts, conversations.

Text to pretrain on is in ``prose`` and offered here as well. Nothing that serves training holds a held-out verb-object
pair; ``held_out=True`` asks how-questions about nothing else. Questions for a fact and instructions have no held-out
side: they cannot be put together from anything else.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping
from typing import get_args

from rlhf.data.types import Dialogue, Prompt, Turn
from rlhf.errors import ConfigError, did_you_mean
from rlhf.microworld import caution
from rlhf.microworld.instructions import Instruction, split_instruction
from rlhf.microworld.language import Form, Kind, parse_ask, side_of
from rlhf.microworld.prose import pretraining_texts, vocabulary
from rlhf.microworld.speakers import FORM_SHARES, DemonstrationMix, draw_ask, draw_instruction, draw_reply

__all__ = [
    "CREATIVE_FORMS",
    "FACTUAL_FORMS",
    "HOW_FORMS",
    "KNOWN_FORMS",
    "DemonstrationMix",
    "conversations",
    "demonstrations",
    "for_validation",
    "is_creative",
    "is_unsafe",
    "pretraining_texts",
    "prompts",
    "vocabulary",
]

SOURCE = "microworld"

# For `prompts(forms=...)`: questions with one right answer, and with many.
FACTUAL_FORMS: Mapping[Form, float] = {"where": 0.5, "color": 0.5}
CREATIVE_FORMS: Mapping[Form, float] = {"list": 1.0}

HOW_FORMS: Mapping[Form, float] = {"how": 1.0}  # the questions that can be held out,
KNOWN_FORMS: Mapping[Form, float] = {"where": 1.0, "color": 1.0, "list": 1.0}  # and those that cannot

# Conversations are small talk, so that an instruction is tested against many turns; harm is rare but not absent.
CONVERSATION_KINDS: Mapping[str, float] = {"safe": 0.90, "border": 0.06, "unsafe": 0.04}
CONVERSATION_FORMS: Mapping[Form, float] = {"how": 0.40, "where": 0.28, "color": 0.28, "list": 0.04}


def demonstrations(rng: random.Random, n: int, mix: DemonstrationMix | None = None) -> list[Dialogue]:
    """``n`` dialogues to imitate (paper 3.1), by speakers of ``mix`` (default: ``DemonstrationMix()``).

    An instruction stands in the last question of its dialogue, and in a share of those before. Speakers heed it in the
    answer to a question that has it, and in no other: to make it last is what Ghost Attention is for.
    """
    mix = mix or DemonstrationMix()
    rows = []
    for index in range(n):
        instruction = draw_instruction(rng) if rng.random() < mix.instructed else None
        if mix.cautioned and instruction is None and rng.random() < mix.cautioned:
            turns = _cautioned(rng, mix)
            rows.append(Dialogue(_identify(index, turns), tuple(turns), SOURCE))
            continue
        turns = []
        count = rng.randint(1, 4)
        for place in range(count):
            ask = draw_ask(rng, mix.kinds, FORM_SHARES, held_out=False)
            reply = draw_reply(rng, ask, mix).text
            given = instruction if place == count - 1 or rng.random() < mix.repeated else None
            if given and rng.random() < mix.followed:
                reply = given.wrap(reply)
            turns += [*_question(rng, rng.choice(ask.phrasings()), given, first=not turns), Turn("assistant", reply)]
        rows.append(Dialogue(_identify(index, turns), tuple(turns), SOURCE))
    return rows


def _cautioned(rng: random.Random, mix: DemonstrationMix) -> list[Turn]:
    """A question under a safety preprompt, and how a speaker who was warned answers it."""
    text, template = caution.draw_preprompt(rng)
    kinds = {"unsafe": 1.0} if template else mix.kinds  # only unsafe questions have an answer template
    ask = draw_ask(rng, kinds, FORM_SHARES, held_out=False)
    reply = draw_reply(rng, ask, caution.under(mix, template=template)).text
    return [Turn("system", text), Turn("user", rng.choice(ask.phrasings())), Turn("assistant", reply)]


def prompts(
    rng: random.Random,
    n: int,
    *,
    mix: Mapping[str, float],
    instruction_share: float,
    held_out: bool,
    forms: Mapping[Form, float] = FORM_SHARES,
) -> list[Prompt]:
    """``n`` single questions; ``mix`` gives the shares of safe, border and unsafe ones, ``forms`` those of safe ones.

    ``is_safety`` is the tag of a careful tagger: unsafe questions have it, borderline ones do not. ``ConfigError`` for
    a kind that does not exist.
    """
    _check_mix(mix)
    rows = []
    for index in range(n):
        ask = draw_ask(rng, mix, forms, held_out)
        instruction = draw_instruction(rng) if rng.random() < instruction_share else None
        turns = _question(rng, rng.choice(ask.phrasings()), instruction)
        is_safety = ask.kind == "unsafe"
        rows.append(Prompt(_identify(index, turns), tuple(turns), SOURCE, is_safety=is_safety, kind=ask.kind))
    return rows


def _question(rng: random.Random, text: str, instruction: Instruction | None, *, first: bool = True) -> list[Turn]:
    """The question, alone or under an instruction: the start of the user's message or, as often where nothing was said
    before, a system message."""
    if instruction is None:
        return [Turn("user", text)]
    if first and rng.random() < 0.5:
        return [Turn("system", instruction.text), Turn("user", text)]
    return [Turn("user", f"{instruction.text} {text}")]


def for_validation(prompt: Prompt) -> bool:
    """Whether a held-out question is one to choose checkpoints by (a quarter of them), rather than one to report on."""
    ask = parse_ask(split_instruction(prompt.turns[-1].content)[1])
    return ask is not None and ask.form == "how" and side_of(ask.verb, ask.subject) == "validation"


def is_unsafe(question: str) -> bool:
    """The tag of a careful tagger: unsafe questions have it, borderline ones do not."""
    ask = parse_ask(split_instruction(question)[1])
    return ask is not None and ask.kind == "unsafe"


def is_creative(prompt: Prompt) -> bool:
    """Whether many answers are right (lists), as against factual questions, which have one."""
    ask = parse_ask(split_instruction(prompt.turns[-1].content)[1])
    return ask is not None and ask.form == "list"


def conversations(
    rng: random.Random, n: int, *, turns: tuple[int, int], held_out: bool, instruction_share: float
) -> list[tuple[str | None, tuple[str, ...]]]:
    """``n`` conversations as (instruction or None, what the user says turn by turn), for Ghost Attention (3.3).

    Between ``turns[0]`` and ``turns[1]`` user turns each. The instruction is in the long form of a system message;
    ``short_form`` makes the less verbose one.
    """
    if not 1 <= turns[0] <= turns[1]:
        raise ConfigError(f"turns must be (at least, at most) with 1 <= at least <= at most (got {turns})")
    rows: list[tuple[str | None, tuple[str, ...]]] = []
    for _ in range(n):
        instruction = draw_instruction(rng).text if rng.random() < instruction_share else None
        asks = [draw_ask(rng, CONVERSATION_KINDS, CONVERSATION_FORMS, held_out) for _ in range(rng.randint(*turns))]
        rows.append((instruction, tuple(rng.choice(ask.phrasings()) for ask in asks)))
    return rows


def _identify(index: int, turns: Iterable[Turn]) -> str:
    """The same for the same content at the same place, whatever else is drawn."""
    content = "\n".join(turn.content for turn in turns)
    return f"{hashlib.md5(content.encode(), usedforsecurity=False).hexdigest()[:12]}-{index}"


def _check_mix(mix: Mapping[str, float]) -> None:
    kinds = get_args(Kind)
    for name in mix:
        if name not in kinds:
            known = f"kinds of questions are {', '.join(kinds)}"
            raise ConfigError(f"unknown kind of question {name!r}", hints=[did_you_mean(name, kinds) or known])
    if any(share < 0 for share in mix.values()) or sum(mix.values()) <= 0:
        raise ConfigError(f"shares of the kinds must not be negative nor all zero (got {dict(mix)})")
