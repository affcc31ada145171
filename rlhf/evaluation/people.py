"""Does an instruction given once still hold after many turns, where people ask? (3.3, Table 30)

No oracle knows what people ask, so instructions are of a kind whose keeping a rule can read off the answer, such as
"never use a comma". Ghost Attention that was trained on other constraints has never seen them (Fig 28).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from rlhf.evaluation.multi_turn import by_rules, follow_rates
from rlhf.evaluation.subject import Evaluation
from rlhf.models.load import context_of
from rlhf.schema import MICROWORLD


def multi_turn(e: Evaluation, shown: Mapping[str, str]) -> dict[str, Any]:
    """By policy (label -> name) and turn the share of answers that keep the instruction; what is left out is said.

    A dialogue that outgrows the context is over, so that late turns may count fewer (`counted`).
    """
    config, say = e.job.config, e.job.track.say
    for setting in ("changes", "unseen"):
        if getattr(config, setting):
            say(f"left out: evaluate.{setting}, which needs the instructions of the micro-world")
    instructions = known(e, say=say)
    held = dialogues(e, list(instructions), what="many turns (Table 30)") if instructions else []
    if not held:
        return {}
    found: dict[str, Any] = {"n": len(held), "instructions": len({c.instruction for c in held})}
    with e.job.track.progress(len(shown), "multi-turn") as bar:
        for label, name in shown.items():
            kept = follow_rates(
                *(e.engine(e.model(name)), e.tokenizer, held),
                turns=config.turns,
                max_new_tokens=config.max_new_tokens,
                judged=by_rules(instructions),
                context=context_of(e.policies[name]),
            )
            found |= {f"{label}_policy": name, label: kept.table(), f"interval_{label}": kept.intervals()}
            found[f"counted_{label}"] = {str(turn): count for turn, count in kept.counts.items()}
            bar.advance(1)
    return found


def known(e: Evaluation, *, say: Callable[[str], None]) -> dict[str, Checked]:
    """Instruction -> its rules: of the file that `evaluate.instructions` names, or our own."""
    path = e.job.config.instructions.path
    rows = checks.read(path) if path else checks.INSTRUCTIONS
    found = {row.prompt: row for row in rows if row.known}
    if len(found) < len(rows):
        left_out = f"{len(rows) - len(found):,} of {len(rows):,} instructions of {path}"
        say(f"left out: {left_out}, which stand there twice or have rules that cannot be checked")
    return found


def as_given(e: Evaluation, count: int) -> list[tuple[Turn, ...]]:
    """So many of these dialogues with the answers that were given, under an instruction that these know nothing of.

    Those longer than a policy's context are left out, which is said.
    """
    fitting, long = [], 0
    for c in dialogues(e, list(known(e, say=lambda _: None)), what="attention to the instruction (Fig 10)"):
        said = [turn for pair in zip(c.user_turns, c.answers, strict=True) for turn in exchange(*pair)]
        turns = (Turn("system", c.instruction), *said)
        if len(encode_dialogue(e.tokenizer, turns).input_ids) <= min(map(context_of, e.policies.values())):
            fitting.append(turns)
        else:
            long += 1
    if long:
        e.job.track.say(f"left out: {long:,} dialogues to read attention in (Fig 10), longer than the context")
    return fitting[:count]


def dialogues(e: Evaluation, instructions: list[str], *, what: str) -> list[Conversation]:
    """Held-out dialogues of `evaluate.data` that are long enough, each once and under one of these instructions."""
    config, lists = e.job.config, Lists({"instructions": instructions})
    found: list[Conversation] = []
    for source in config.data:
        if source.name == MICROWORLD:
            continue  # beside prompts of people its questions count as theirs, and nobody asks them for twenty turns
        try:
            found += feed.conversations(
                (source,),
                config.dialogues,
                min_turns=max(config.turns),
                max_turns=max(config.turns),
                seed=e.job.seed_of("multi-turn"),
                held_out=True,
                stage="evaluate",
                lists=lists,
                test_share=e.job.recipe.data.test_share,
                say=e.job.track.say,
            )
        except DataError as error:  # prompts alone, say, or shorter dialogues
            said = ", ".join(part for part in (error.where, error.what) if part)
            e.job.track.say(f"left out: {what} of {source.name}: {said}; {'; '.join(error.hints)}")
    return list({c.user_turns: c for c in found}.values())[: config.dialogues]
