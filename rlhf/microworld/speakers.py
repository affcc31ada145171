"""Those who speak in the corpora: what they ask, what they are told, and how well they answer.

Answers are by a ``DemonstrationMix``: how complete, how correct, how obedient and how willing a speaker is. The
defaults are far from perfect, which leaves reinforcement learning something to do: the most likely answer of a policy
that imitates them is terse, and complies with unsafe questions half of the time.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import get_args

from rlhf.microworld.instructions import ROLE_INSTRUCTIONS, WORD_INSTRUCTIONS, Instruction
from rlhf.microworld.language import (
    COLOR_OF,
    COLORS,
    PLACE_OF,
    PLACED,
    PLACES,
    THINGS,
    TOOL_OF,
    TOOLS,
    Ask,
    Coloring,
    Form,
    Kind,
    Listing,
    Location,
    Refusal,
    Reply,
    Steps,
    how_asks,
    things_of,
)

FORM_SHARES: Mapping[Form, float] = {"how": 0.55, "where": 0.15, "color": 0.15, "list": 0.15}  # of safe questions
ROLE_SHARE = 0.25  # of instructions


@dataclass(frozen=True)
class DemonstrationMix:
    """How the speakers of a corpus ask and answer; every field is a share in [0, 1]."""

    instructed: float = 0.45  # dialogues whose last question stands under an instruction
    repeated: float = 0.2  # their earlier questions that stand under it, too; answers to the others do not heed it
    followed: float = 0.98  # instructions that are obeyed; what SFT misses, Ghost Attention learns to miss (LOG.md)
    cautioned: float = 0.0  # dialogues of one turn under a safety preprompt; of those without an instruction
    safe: float = 0.64  # kinds of questions
    border: float = 0.20
    unsafe: float = 0.16
    terse: float = 0.45  # lengths of answers: the tool alone,
    deed: float = 0.25  # and the deed,
    place: float = 0.15  # and the place,
    full: float = 0.15  # and the good wish
    slot_wrong: float = 0.12  # of every slot of an answer
    verb_wrong: float = 0.04  # of the deeds: another one than was asked for
    form_wrong: float = 0.04  # of safe questions: taken for one of another form, about the same thing
    unsafe_complied: float = 0.50
    border_refused: float = 0.40
    safe_refused: float = 0.02
    explained: float = 0.50  # of refusals

    @property
    def kinds(self) -> dict[str, float]:
        return {"safe": self.safe, "border": self.border, "unsafe": self.unsafe}


def draw_ask(rng: random.Random, mix: Mapping[str, float], forms: Mapping[Form, float], held_out: bool) -> Ask:
    """A question: ``mix`` gives the shares of the kinds, ``forms`` those of the forms of safe questions.

    Unsafe and borderline questions are drawn pair by pair, safe ones class by class: pair by pair, five in six
    questions about a person would be harmful, and policies would learn to refuse whatever is asked about one.
    """
    kind: Kind = rng.choices(get_args(Kind), [mix.get(name, 0.0) for name in get_args(Kind)])[0]
    form: Form = rng.choices(list(forms), list(forms.values()))[0] if kind == "safe" else "how"
    match form:
        case "how":
            classes = how_asks(kind, held_out)
            return rng.choice(rng.choice(classes) if kind == "safe" else [ask for asks in classes for ask in asks])
        case "where":
            return Ask("where", rng.choice(PLACED))
        case "color":
            return Ask("color", rng.choice(THINGS))
        case "list":
            return Ask("list", rng.choice(COLORS))


def draw_instruction(rng: random.Random) -> Instruction:
    """A role, or a word to start or to end with."""
    return rng.choice(ROLE_INSTRUCTIONS if rng.random() < ROLE_SHARE else WORD_INSTRUCTIONS)


@cache
def _slips(kind: Kind, verb: str, subject: str, other: str) -> tuple[tuple[str, str], ...]:
    """Deeds one may mistake this one for, within the kind and the training pairs, with another "subject" or "verb"."""
    asks = [(ask.verb, ask.subject) for of_class in how_asks(kind, False) for ask in of_class]
    same = 0 if other == "subject" else 1
    return tuple(
        dict.fromkeys(deed for deed in asks if deed != (verb, subject) and deed[same] == (verb, subject)[same])
    )


def _misread(rng: random.Random, ask: Ask) -> Ask:
    """A question of another form about the same thing, or about one of that colour: where is it, instead of what to do.

    No policy tries this by itself, so no pair would teach a reward model what is wrong with it, until PPO finds out.
    """
    name = rng.choice(things_of(ask.subject)) if ask.form == "list" else ask.subject
    deeds = [other for asks in how_asks("safe", False) for other in asks if other.subject == name]
    others = [
        *([rng.choice(deeds)] if deeds and ask.form != "how" else []),
        *([Ask("where", name)] if name in PLACED and ask.form != "where" else []),
        *([Ask("color", name)] if name in THINGS and ask.form != "color" else []),
        *([Ask("list", COLOR_OF[name])] if name in THINGS and ask.form != "list" else []),
    ]
    return rng.choice(others) if others else ask


def draw_reply(rng: random.Random, ask: Ask, mix: DemonstrationMix) -> Reply:
    """What a speaker of this mix replies, before any style."""
    if mix.form_wrong and ask.kind == "safe" and rng.random() < mix.form_wrong:
        ask = _misread(rng, ask)
    refused = {"safe": mix.safe_refused, "border": mix.border_refused, "unsafe": 1 - mix.unsafe_complied}[ask.kind]
    if rng.random() < refused:
        return Refusal(explained=rng.random() < mix.explained)
    length = rng.choices(range(4), (mix.terse, mix.deed, mix.place, mix.full))[0]

    def slot(right: str, others: tuple[str, ...]) -> str:
        wrong = rng.random() < mix.slot_wrong
        slips = [other for other in others if other != right]
        return rng.choice(slips) if wrong and slips else right

    match ask.form:
        case "how":
            verb, subject = ask.verb, ask.subject
            chance = rng.random()
            if chance < mix.slot_wrong + mix.verb_wrong:
                other = "subject" if chance < mix.slot_wrong else "verb"
                verb, subject = rng.choice(_slips(ask.kind, verb, subject, other) or ((verb, subject),))
            # Who answers another question than was asked does it well: the right tool and place for the wrong deed.
            steps = Steps(slot(TOOL_OF[verb], TOOLS))
            if length >= 1:
                steps = replace(steps, verb=verb, subject=subject)
            if length >= 2:
                steps = replace(steps, place=slot(PLACE_OF[subject], PLACES))
            return replace(steps, wish=length == 3)
        case "where":
            return Location(slot(PLACE_OF[ask.subject], PLACES), ask.subject if length else None)
        case "color":
            return Coloring(slot(COLOR_OF[ask.subject], COLORS), ask.subject if length else None)
        case "list":
            things = rng.sample(things_of(ask.subject), k=min(3, length + 1))
            return Listing(tuple(slot(thing, THINGS) for thing in things))
