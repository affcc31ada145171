"""Does an instruction given once still hold after many turns, where people ask? (3.3, Table 30)

No oracle knows what people ask, so instructions are of a kind whose keeping a rule can read off the answer, such as
"never use a comma". Ghost Attention that was trained on other constraints has never seen them (Fig 28).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from rlhf.data import feed
from rlhf.data.chat import encode_dialogue
from rlhf.data.conversations import Conversation
from rlhf.data.gatt import exchange
from rlhf.data.instructions import Lists
from rlhf.data.types import Turn
from rlhf.errors import DataError
from rlhf.evaluation import checks
from rlhf.evaluation.checks import Checked
from rlhf.evaluation.multi_turn import TurnRates, by_rules, follow_rates
from rlhf.evaluation.subject import Evaluation
from rlhf.models.load import context_of
from rlhf.schema import MICROWORLD


def multi_turn(e: Evaluation, shown: Mapping[str, str]) -> dict[str, Any]:
    """By policy (label -> name) and turn the share of answers that keep the instruction; what is left out is said.

    All are held against one another in the same dialogues: in those that none of them makes outgrow its context.
    """
    config, say = e.job.config, e.job.track.say
    for setting in ("changes", "unseen"):
        if getattr(config, setting):
            say(f"left out: evaluate.{setting}, which needs the instructions of the micro-world")
    rows = asked_for(e)
    instructions = checks.known(rows)
    if unknown := len(rows) - len(instructions):
        left_out = f"{unknown:,} of {len(rows):,} instructions of {config.instructions.path}"
        say(f"left out: {left_out}, which stand there twice or have rules that cannot be checked")
    held = dialogues(e, list(instructions), what="many turns (Table 30)")
    if not held:
        return {}
    context = room(e)
    rates: dict[str, TurnRates] = {}
    with e.job.track.progress(len(shown), "multi-turn") as bar:
        for label, name in shown.items():
            rates[label] = follow_rates(
                *(e.engine(e.model(name)), e.tokenizer, held),
                turns=config.turns,
                max_new_tokens=config.max_new_tokens,
                judged=by_rules(instructions),
                context=context,
            )
            bar.advance(1)
    lasted = set.intersection(*(found.lasted for found in rates.values()))
    if len(lasted) < len(held):
        say(f"left out: {len(held) - len(lasted):,} of {len(held):,} dialogues (Table 30), which outgrew the context")
    if not lasted:
        return {}
    found: dict[str, Any] = {"n": len(lasted), "instructions": len({held[i].instruction for i in lasted})}
    for label, name in shown.items():
        kept = rates[label].of(lasted)
        found |= {f"{label}_policy": name, label: kept.table(), f"interval_{label}": kept.intervals()}
    return found


def as_given(e: Evaluation, count: int) -> list[tuple[Turn, ...]]:
    """So many of these dialogues with the answers that were given, under an instruction that these know nothing of.

    Those longer than the context are left out, which is said.
    """
    context = room(e)
    drawn = dialogues(e, list(checks.known(asked_for(e))), what="attention to the instruction (Fig 10)")
    fitting = [c for c in drawn if len(encode_dialogue(e.tokenizer, spoken(c)).input_ids) <= context]
    if len(fitting) < min(count, len(drawn)):
        long = len(drawn) - len(fitting)
        e.job.track.say(f"left out: {long:,} of {len(drawn):,} dialogues (Fig 10), which are longer than the context")
    return [spoken(c) for c in fitting[:count]]


def spoken(c: Conversation) -> tuple[Turn, ...]:
    """The dialogue as it was held, but for the instruction."""
    exchanges = [exchange(*pair) for pair in zip(c.user_turns, c.answers, strict=True)]
    return (Turn("system", c.instruction), *chain.from_iterable(exchanges))


def room(e: Evaluation) -> int:
    """Tokens of the shortest context, and no more than `model.max_length`."""
    return min([e.job.recipe.model.max_length, *map(context_of, e.policies.values())])


def asked_for(e: Evaluation) -> Sequence[Checked]:
    """Instructions with their rules: of the file that `evaluate.instructions` names, or our own."""
    path = e.job.config.instructions.path
    return checks.read(path) if path else checks.INSTRUCTIONS


def dialogues(e: Evaluation, instructions: Sequence[str], *, what: str) -> list[Conversation]:
    """Held-out dialogues of `evaluate.data` that are long enough, each once and under one of these instructions.

    In a random order, so that no source comes before another.
    """
    if not instructions:
        return []
    config, seed, say = e.job.config, e.job.seed_of("multi-turn"), e.job.track.say
    found: list[Conversation] = []
    for source in config.data:
        if source.name == MICROWORLD:
            say(f"left out: {what} of {source.name}, beside dialogues of people")
            continue
        try:
            found += feed.conversations(
                (source,),
                config.dialogues,
                min_turns=max(config.turns),
                max_turns=max(config.turns),
                seed=seed,
                held_out=True,
                stage="evaluate",
                lists=Lists({"instructions": instructions}),
                test_share=e.job.recipe.data.test_share,
                say=say,
            )
        except DataError as error:  # prompts alone, say, or shorter dialogues
            said = ", ".join(part for part in (error.where, error.what) if part)
            say(f"left out: {what} of {source.name}: {said}; {'; '.join(error.hints)}")
    once = list({c.user_turns: c for c in found}.values())
    usable = [c for c in once if encodable(e, c)]
    if len(usable) < len(once):
        refused = f"{len(once) - len(usable):,} of {len(once):,} dialogues"
        say(f"left out: {what} of {refused}, which the chat template refuses: their words, or a system message")
    random.Random(seed).shuffle(usable)
    return usable[: config.dialogues]


def encodable(e: Evaluation, c: Conversation) -> bool:
    """Whether the template takes the dialogue: some know no system message, and no text may hold a control tag."""
    try:
        encode_dialogue(e.tokenizer, spoken(c))
    except DataError:
        return False
    return True
