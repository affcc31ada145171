"""Does an instruction given once still hold after many turns, and is a change of it followed? (3.3, Table 30)"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.chat import encode_prompt
from rlhf.data.conversations import Conversation
from rlhf.data.types import Prompt, Turn
from rlhf.evaluation.checks import Checked
from rlhf.evaluation.intervals import wilson
from rlhf.generation.protocol import Engine, Sampling
from rlhf.microworld.oracle import Verdict, judge
from rlhf.rollout import Sample, batches, remembering, sample

Judged = Callable[[Conversation, Sample], tuple[bool, float | None]]
"""Of an answer: whether it follows what is in force, and what its content is worth where somebody knows."""


@dataclass(frozen=True, slots=True)
class TurnRates:
    """By user turn (1 is the first): the share of answers that follow what is in force, and their mean content.

    A turn that no conversation came to is absent; so is content that nobody knows the worth of.
    """

    followed: dict[int, float]
    content: dict[int, float]
    counts: dict[int, int]
    """Conversations that came to this turn."""

    def intervals(self) -> dict[str, tuple[float, float]]:
        """By turn, Wilson's 95% interval of the share that follows."""
        counts = self.counts
        return {str(turn): wilson(round(rate * counts[turn]), counts[turn]) for turn, rate in self.followed.items()}

    def table(self) -> dict[str, Any]:
        """By turn as text, as report.json has it."""
        return {str(turn): rate for turn, rate in self.followed.items()}


def follow_rates(
    policy: PreTrainedModel | Engine,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    turns: Sequence[int],
    max_new_tokens: int,
    judged: Judged | None = None,
    context: int | None = None,
) -> TurnRates:
    """Hold every conversation greedily, answer by answer, and judge the answers at `turns`.

    Args:
        judged: by whom; none: by the micro-world's oracle.
        context: tokens; a conversation is over where an answer might not fit any more. None: that is an error.
    """
    engine, judged = remembering(policy), judged or by_oracle
    found: dict[int, list[tuple[bool, float | None]]] = {turn: [] for turn in sorted(turns)}
    for part in batches(engine, len(conversations)):
        held = [conversations[i] for i in part]
        spoken = [[Turn("system", c.instruction)] for c in held]
        for turn in range(1, max(turns) + 1):
            for c, said in zip(held, spoken, strict=True):
                said.append(Turn("user", c.said(turn - 1)))
            if context is not None:
                room = context - max_new_tokens
                live = [i for i, said in enumerate(spoken) if len(encode_prompt(tokenizer, said)) <= room]
                held, spoken = [held[i] for i in live], [spoken[i] for i in live]
            if not held:
                break
            prompts = [
                Prompt(c.id, tuple(said), c.source, is_safety=False) for c, said in zip(held, spoken, strict=True)
            ]
            answers = [g[0] for g in sample(engine, tokenizer, prompts, Sampling(1, 0.0, max_new_tokens), seed=0)]
            if turn in found:
                found[turn] += [judged(c, answer) for c, answer in zip(held, answers, strict=True)]
            for said, answer in zip(spoken, answers, strict=True):
                said.append(Turn("assistant", answer.text or "."))
    counts = {turn: len(rows) for turn, rows in found.items() if rows}
    followed = {turn: sum(kept for kept, _ in found[turn]) / n for turn, n in counts.items()}
    known = {turn: [worth for _, worth in found[turn] if worth is not None] for turn in counts}
    content = {turn: sum(worths) / len(worths) for turn, worths in known.items() if worths}
    return TurnRates(followed, content, counts)


def by_oracle(_: Conversation, answer: Sample) -> tuple[bool, float | None]:
    """The micro-world's oracle, which finds the instruction in the prompt."""
    verdict = judge(answer.prompt.turns, answer.text, finished=answer.finished)
    return follows(verdict), verdict.content


def by_rules(instructions: Mapping[str, Checked]) -> Judged:
    """The rules of the conversation's instruction, which need no judge; none of them knows what an answer is worth."""
    return lambda c, answer: (all(instructions[c.instruction].kept(answer.text)), None)


def follows(verdict: Verdict) -> bool:
    """It obeys the instruction in force, if there is one, and has no other style, as that of one that was replaced."""
    return verdict.followed is not False and not verdict.styled
