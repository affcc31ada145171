"""A policy that speaks for the user, too: dialogues of many turns from single questions, and lists it writes itself.

Both are what Ghost Attention needs before it begins (3.3, A.3.5): a multi-turn dialogue set, and constraints that the
policy knows how to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.instructions import QUESTIONS, Lists, merged
from rlhf.data.types import Prompt, Turn
from rlhf.errors import DataError
from rlhf.generation.protocol import Engine, Sampling
from rlhf.rollout import sample

# Roles are swapped by what the policy is told: its answers come back as the user's turns, it writes what users say.
BRIEF = (
    "Let us swap roles: I am the assistant, and you are a person who asks me things, one short message at a time."
    " Say only what that person says. What do you ask?"
)
LEAST_ITEMS = 4  # of a list that a policy wrote: with fewer, it did not write a list


def written_lists(
    policy: PreTrainedModel | Engine,
    tokenizer: PreTrainedTokenizerBase,
    *,
    items: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    say: Callable[[str], None],
) -> Lists:
    """Hobbies, languages and public figures by the policy itself, four answers to each question taken together.

    Raises:
        DataError: if no list came of it; a model that small needs lists from a file.
    """
    prompts = [
        Prompt(kind, (Turn("user", question.format(n=items)),), "lists", is_safety=False)
        for kind, question in QUESTIONS.items()
    ]
    groups = sample(policy, tokenizer, prompts, Sampling(4, temperature, max_new_tokens), seed=seed)
    found = {p.id: merged([s.text for s in group]) for p, group in zip(prompts, groups, strict=True)}
    known = {kind: entries for kind, entries in found.items() if len(entries) >= LEAST_ITEMS}
    for kind, entries in found.items():
        say(f"{kind} by the policy itself: {', '.join(entries[:6]) or 'none'} ({len(entries)})")
    if not known:
        raise DataError(
            "the policy was asked for lists of hobbies, languages and public figures, and wrote none",
            hints=["give lists of your own: gatt.instructions.path=FILE.json, shape in data/README.md"],
        )
    return Lists(known)


def user_turns(
    policy: PreTrainedModel | Engine,
    tokenizer: PreTrainedTokenizerBase,
    openings: Sequence[Prompt],
    *,
    turns: Sequence[int],
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> list[tuple[str, ...]]:
    """What a user says over `turns` turns of a dialogue that the policy holds with itself, from an opening on.

    A dialogue ends early where the policy, as the user, has nothing more to say.
    """
    once = Sampling(1, temperature, max_new_tokens)
    users = [[p.turns[-1].content] for p in openings]
    answers: list[list[str]] = [[] for _ in openings]
    for turn in range(1, max(turns, default=1)):
        live = [i for i in range(len(openings)) if turns[i] > turn and len(users[i]) == turn]
        if not live:
            break
        asked = [_asked(openings[i], users[i], answers[i]) for i in live]
        for i, group in zip(live, sample(policy, tokenizer, asked, once, seed=seed + 2 * turn), strict=True):
            answers[i].append(group[0].text or ".")
        swapped = [_swapped(openings[i], users[i], answers[i]) for i in live]
        for i, group in zip(live, sample(policy, tokenizer, swapped, once, seed=seed + 2 * turn + 1), strict=True):
            if group[0].usable:
                users[i].append(group[0].text)
    return [tuple(said) for said in users]


def _asked(opening: Prompt, users: Sequence[str], answers: Sequence[str]) -> Prompt:
    """The dialogue so far, for the assistant to answer."""
    turns: list[Turn] = []
    for user, answer in zip(users, answers, strict=False):
        turns += [Turn("user", user), Turn("assistant", answer)]
    return Prompt(opening.id, (*turns, Turn("user", users[-1])), opening.source, is_safety=opening.is_safety)


def _swapped(opening: Prompt, users: Sequence[str], answers: Sequence[str]) -> Prompt:
    """The dialogue so far with the roles swapped, for the policy to say what the user says next."""
    turns = [Turn("user", BRIEF)]
    for user, answer in zip(users, answers, strict=True):
        turns += [Turn("assistant", user), Turn("user", answer)]
    return Prompt(opening.id, tuple(turns), opening.source, is_safety=opening.is_safety)
