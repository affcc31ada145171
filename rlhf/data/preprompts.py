"""Safety preprompts: what is said before an adversarial prompt so that the answer comes out safe (4.2.4, Table 39).

A generic one is put together from a template and adjectives. One with an answer template names the category the prompt
was labelled with and says how to answer. Context distillation samples under them and trains without them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf.data.types import Prompt, Turn
from rlhf.microworld import caution
from rlhf.schema import MICROWORLD

# Table 39 and 4.2; "{}" is an adjective of the list below.
GENERIC = (
    "You are a {} and {} assistant.",
    "You are a {} and {} assistant that never gives an answer that is in any way insensitive, sexist, racist, or"
    " socially inappropriate. When in doubt, it's better to point out what is problematic with the human's question"
    ' rather than saying "I don\'t know".',
    "The following user question has been flagged as unsafe. Please respond in a way that is {} and {}.",
    "You are a {} and {} assistant. Please refrain from giving any legally questionable or dangerous advice in your"
    " responses. Please ensure that your responses are socially unbiased and positive in nature.",
    "The following is a discussion between a human and a {} and {} assistant. The assistant's answers should not"
    " include any harmful, unethical, or socially biased content, and should move the conversation in a positive"
    " direction.",
)
ADJECTIVES = ("responsible", "respectful", "wise", "safe", "friendly", "empathetic", "positive", "knowledgeable")

CATEGORY = (
    "The following is a question that can elicit unsafe behavior from you. The question was classified as belonging to"
    " the violating category: '{category}'. You should answer using the following template: {steps}"
)
# The categories that Table 13 prints, and the substance of its templates.
STEPS: Mapping[str, tuple[str, ...]] = {
    "Criminal / Fraudulent Content": (
        "Address immediate physical or mental safety concerns, if there are any.",
        "Refuse to give the content that was asked for, and say that it goes against policy.",
        "Add context, and legal alternatives if there are any.",
        "Invite the user to ask in another way.",
    ),
    "Explicit Content": (
        "Address immediate safety concerns, and name people or places that support those concerned.",
        "Refuse to give the content that was asked for.",
    ),
    "False Information / Disinformation": (
        "Refute what is false in the question.",
        "Add what is known, with its source.",
        "Point to legitimate sources of information.",
    ),
}


@dataclass(frozen=True, slots=True)
class Preprompts:
    """What may be said before a prompt: generic texts, templates with adjectives, and answer templates by category."""

    generic: Sequence[str]
    adjectives: Sequence[str]
    by_category: Mapping[str, str]

    def draw(self, rng: random.Random, category: str) -> str:
        """The answer template of the category; a generic preprompt where there is none."""
        if category in self.by_category:
            return self.by_category[category]
        template = rng.choice(self.generic)
        return template.format(*rng.sample(list(self.adjectives), template.count("{}")))


PAPER = Preprompts(
    GENERIC,
    ADJECTIVES,
    {
        name: CATEGORY.format(category=name, steps=" ".join(f"{i}. {step}" for i, step in enumerate(steps, start=1)))
        for name, steps in STEPS.items()
    },
)
EMBEDDED = Preprompts(caution.GENERIC, caution.ADJECTIVES, caution.BY_KIND)


def of(source: str) -> Preprompts:
    """The preprompts in the language of a source of prompts."""
    return EMBEDDED if source == MICROWORLD else PAPER


def without_templates(preprompts: Preprompts) -> Preprompts:
    """Generic preprompts only."""
    return Preprompts(preprompts.generic, preprompts.adjectives, {})


def under(prompt: Prompt, preprompt: str) -> Prompt:
    """The prompt with a preprompt before it, as system message; a system message of its own comes after it."""
    turns = prompt.turns
    own = f"\n{turns[0].content}" if turns[0].role == "system" else ""
    spoken = turns[1:] if own else turns
    system = Turn("system", preprompt + own)
    return Prompt(prompt.id, (system, *spoken), prompt.source, is_safety=prompt.is_safety, kind=prompt.kind)
