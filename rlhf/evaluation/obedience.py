"""Whether an answer obeys the instruction of its turn, as far as a rule can tell: what Ghost Attention may learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlhf.data.conversations import Conversation
from rlhf.errors import ConfigError, DataError
from rlhf.evaluation import checks
from rlhf.evaluation.checks import Checked
from rlhf.evaluation.multi_turn import by_oracle
from rlhf.microworld.corpus import SOURCE
from rlhf.rollout import Sample

Obeys = Callable[[Conversation, int, Sample], bool | None]
"""Of an answer at a turn (0 is the first): whether it obeys what is in force; None where nobody can tell."""


def obedience(
    conversations: Sequence[Conversation], given: Sequence[Checked], *, path: str | None, say: Callable[[str], None]
) -> Obeys:
    """The micro-world's oracle for its own dialogues, rules for others: ours, and the given ones, of the file `path`.

    A rule is for instructions in which its text stands. Nobody can tell where none does, or where a question of the
    micro-world is not of its language, as a policy that speaks for the user may ask. After a withdrawal nothing is in
    force, and nothing to miss but, in the micro-world, a style that nobody asked for.

    Raises:
        ConfigError: if nobody can tell in any of the conversations.
    """
    rules = checks.known((*checks.INSTRUCTIONS, *given))
    in_force = {c.in_force(turn) for c in conversations if c.source != SOURCE for turn in range(len(c.user_turns))}
    by_text = {text: checks.of_instruction(rules, text) for text in in_force}
    if not any(by_text.values()) and all(c.source != SOURCE for c in conversations):
        raise ConfigError(
            f"no rule is for an instruction of the {len(conversations):,} conversations",
            where=path or "gatt.check_targets",
            hints=["give the texts of instructions with their rules: gatt.rules.path", "or gatt.check_targets=false"],
        )
    used = {rule.prompt for found in by_text.values() for rule in found}
    if idle := [row for row in given if not row.known or row.prompt not in used]:
        unknown = sum(not row.known for row in idle)
        why = f"{unknown:,} with a rule that cannot be checked, {len(idle) - unknown:,} whose text no instruction holds"
        say(f"left out: {len(idle):,} of {len(given):,} rules of {path}: {why}")

    def obeys(c: Conversation, turn: int, answer: Sample) -> bool | None:
        if c.source == SOURCE:
            try:
                return by_oracle(c, answer)[0]
            except DataError:
                return None
        asked = by_text[c.in_force(turn)]
        if not asked and c.in_force(turn):
            return None
        return all(all(rule.kept(answer.text)) for rule in asked)

    return obeys
