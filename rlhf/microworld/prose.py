"""Text to pretrain the base model on: what people of the micro-world say among themselves, never in a chat template.

Facts give tool and place apart; dialogues put them together for the pairs that are not held out; styled speech makes
every style word and role a way of speaking; long dialogues make contexts of many turns known. No held-out pair occurs.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from rlhf.microworld.instructions import ROLES, STYLE_WORDS
from rlhf.microworld.language import (
    COLOR_OF,
    COLORS,
    OBJECTS,
    PLACE_OF,
    PLACES,
    QUESTIONS,
    THINGS,
    TOOL_OF,
    TOOLS,
    VERBS,
    Listing,
    Location,
    Refusal,
    Steps,
    pair_held_out,
    things_of,
)
from rlhf.microworld.speakers import FORM_SHARES, DemonstrationMix, draw_ask, draw_instruction, draw_reply

# The speakers here know their facts and seldom refuse.
CASUAL = DemonstrationMix(
    terse=0.30,
    deed=0.20,
    place=0.15,
    full=0.35,
    slot_wrong=0.0,
    verb_wrong=0.0,
    form_wrong=0.0,
    unsafe_complied=0.85,
    border_refused=0.05,
    safe_refused=0.01,
)

NAMES = ("sam", "ann", "ben", "eva", "tom", "mia", "leo", "zoe", "max", "ida", "kim", "ray", "joe", "amy", "lou", "dan")
_FACTS = (
    ("to {verb} you take the {tool} .", "people {verb} with the {tool} .", "you need the {tool} to {verb} ."),
    (
        "the {subject} is in the {place} .",
        "in the {place} there is the {subject} .",
        "go to the {place} and see the {subject} .",
        "{name} has seen the {subject} in the {place} .",
    ),
    (
        "the {thing} is {color} .",
        "{name} has seen the {color} {thing} .",
        "{color} is the color of the {thing} .",
        "three {color} things are {listing}",
    ),
    (
        "you can {deed} in the {place} .",
        "{name} wants to {deed} and needs the {tool} .",
        "to {deed} you go to the {place} and take the {tool} .",
        "take the {tool} and {deed} in the {place} . good luck !",
    ),
)
_HABITS: dict[str, tuple[str, ...]] = {
    "start": ("{name} always starts with {word} :", "always start with {word} :", "start : {word} ."),
    "end": ("{name} always ends with {word} :", "always end with {word} :", "end : {word} ."),
    "role": ("{name} always talks like a {word} :", "always talk like a {word} :", "role : {word} ."),
}
_GREETINGS = (
    "hello {name} .",
    "good morning {name} .",
    "good evening dear {name} .",
    "my friend , i want to know this .",
    "please , i have to ask you .",
)
_THANKS = (
    "thanks !",
    "oh , thanks {name} .",
    "yes , now i see .",
    "well , that was very nice of you .",
    "sorry , i did not know that .",
)


def pretraining_texts(rng: random.Random, words: int) -> list[str]:
    """About ``words`` words of documents, shuffled: facts, styled speech, dialogues; shares are of words."""
    writers: tuple[tuple[float, Callable[[random.Random], str]], ...] = (
        (0.30, _facts),
        (0.25, _styled_speech),
        (0.30, lambda rng: _talk(rng, rng.randint(1, 3))),
        (0.15, lambda rng: _talk(rng, rng.randint(5, 20))),
    )
    texts = []
    for share, write in writers:
        left = round(share * words)
        while left > 0:
            texts.append(write(rng))
            left -= len(texts[-1].split())
    rng.shuffle(texts)
    return texts


def _facts(rng: random.Random) -> str:
    return " ".join(_fact(rng) for _ in range(rng.randint(2, 5)))


def _fact(rng: random.Random) -> str:
    topic = rng.randrange(4)
    verb, subject, thing = rng.choice(VERBS), rng.choice(OBJECTS), rng.choice(THINGS)
    while topic == 3 and pair_held_out(verb, subject):
        verb, subject = rng.choice(VERBS), rng.choice(OBJECTS)
    color = COLOR_OF[thing]
    return rng.choice(_FACTS[topic]).format(
        verb=verb,
        tool=TOOL_OF[verb],
        subject=subject,
        place=PLACE_OF[subject],
        deed=f"{verb} the {subject}",
        thing=thing,
        color=color,
        listing=Listing(tuple(rng.sample(things_of(color), 3))).text,
        name=rng.choice(NAMES),
    )


def _styled_speech(rng: random.Random) -> str:
    """Somebody's habit of speaking, then some utterances that show it, alone or in a dialogue."""
    instruction = draw_instruction(rng)
    asker, speaker = rng.sample(NAMES, 2)
    parts = [rng.choice(_HABITS[instruction.position]).format(name=speaker, word=instruction.word)]
    asked = rng.random() < 0.5
    for _ in range(rng.randint(1, 4)):
        ask = draw_ask(rng, CASUAL.kinds, FORM_SHARES, held_out=False)
        reply = draw_reply(rng, ask, CASUAL) if asked else ask.answer()
        if asked:
            parts.append(f"{asker} : {rng.choice(ask.phrasings())} {speaker} :")
        parts.append(instruction.wrap(reply.text))
    return " ".join(parts)


def _talk(rng: random.Random, exchanges: int) -> str:
    """Two people, one of whom asks."""
    asker, speaker = rng.sample(NAMES, 2)
    parts = [f"{asker} : {rng.choice(_GREETINGS).format(name=speaker)}"] if rng.random() < 0.2 else []
    for _ in range(exchanges):
        ask = draw_ask(rng, CASUAL.kinds, FORM_SHARES, held_out=False)
        reply = draw_reply(rng, ask, CASUAL).text
        parts.append(f"{asker} : {rng.choice(ask.phrasings())} {speaker} : {reply}")
    if rng.random() < 0.2:
        parts.append(f"{asker} : {rng.choice(_THANKS).format(name=speaker)}")
    return " ".join(parts)


def vocabulary() -> tuple[str, ...]:
    """Every word and punctuation mark of the language, sorted: all that any text of the micro-world is made of."""
    replies = (Steps("{}", "{}", "{}", "{}", wish=True), Location("{}", "{}"), Listing(("{}", "{}")), Refusal())
    texts = [reply.text for reply in replies] + [*NAMES, *_GREETINGS, *_THANKS]
    texts += [text for group in (*QUESTIONS.values(), *_FACTS, *_HABITS.values()) for text in group]
    words = {word for text in texts for word in re.sub(r"\{\w*\}", " ", text).split()}
    words.update(VERBS, OBJECTS, TOOLS, PLACES, COLORS, STYLE_WORDS, ROLES, *ROLES.values())
    return tuple(sorted(words))
