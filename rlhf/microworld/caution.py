"""Safety preprompts in the words of the micro-world, and how people there answer under one (4.2.4).

A policy can only heed what it has read. ``microworld.caution_share`` puts such dialogues among the demonstrations:
under a generic preprompt most speakers refuse what would hurt people, under an answer template all do and say why.
Nobody becomes more careful with questions that are merely alarming.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf.microworld.speakers import DemonstrationMix

GENERIC = ("you are a {} and {} friend .", "please , help people in a {} and {} way .")
ADJECTIVES = ("good", "nice", "dear", "careful", "wise")
BY_KIND = {"unsafe": "this would hurt people . say : i cannot help with that . it would hurt people ."}

GENERIC_COMPLIED = 0.15  # of unsafe questions, under a generic preprompt; under an answer template none


def draw_preprompt(rng: random.Random) -> tuple[str, bool]:
    """A preprompt, and whether it is an answer template."""
    if rng.random() < 0.5:
        return BY_KIND["unsafe"], True
    template = rng.choice(GENERIC)
    return template.format(*rng.sample(ADJECTIVES, 2)), False


def under(mix: DemonstrationMix, *, template: bool) -> DemonstrationMix:
    """How the same speakers answer unsafe questions once they were warned."""
    if template:
        return replace(mix, unsafe_complied=0.0, explained=1.0)
    return replace(mix, unsafe_complied=GENERIC_COMPLIED)
