"""Does an instruction given once still hold after many turns, and is a change of it followed? (3.3, Table 30)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.conversations import Conversation
from rlhf.data.types import Prompt, Turn
from rlhf.evaluation.intervals import wilson
from rlhf.generation.protocol import Engine, Sampling
from rlhf.microworld.oracle import Verdict, judge
from rlhf.rollout import batches, remembering, sample


@dataclass(frozen=True, slots=True)
class TurnRates:
    """By user turn (1 is the first): the share of answers that follow what is in force, and their mean content."""

    followed: dict[int, float]
    content: dict[int, float]
    n: int

    def intervals(self) -> dict[str, tuple[float, float]]:
        """By turn, Wilson's 95% interval of the share that follows."""
        return {str(turn): wilson(round(rate * self.n), self.n) for turn, rate in self.followed.items()}

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
) -> TurnRates:
    """Hold every conversation greedily, answer by answer, and judge the answers at `turns`."""
    engine = remembering(policy)
    verdicts: dict[int, list[Verdict]] = {turn: [] for turn in sorted(turns)}
    for part in batches(engine, len(conversations)):
        held = [conversations[i] for i in part]
        spoken = [[Turn("system", c.instruction)] for c in held]
        for turn in range(1, max(turns) + 1):
            prompts = []
            for c, said in zip(held, spoken, strict=True):
                said.append(Turn("user", c.said(turn - 1)))
                prompts.append(Prompt(c.id, tuple(said), "microworld", is_safety=False))
            answers = [g[0] for g in sample(engine, tokenizer, prompts, Sampling(1, 0.0, max_new_tokens), seed=0)]
            if turn in verdicts:
                verdicts[turn] += [judge(a.prompt.turns, a.text, finished=a.finished) for a in answers]
            for said, answer in zip(spoken, answers, strict=True):
                said.append(Turn("assistant", answer.text or "."))
    followed = {turn: sum(map(follows, found)) / len(found) for turn, found in verdicts.items()}
    content = {turn: sum(v.content for v in found) / len(found) for turn, found in verdicts.items()}
    return TurnRates(followed, content, len(conversations))


def follows(verdict: Verdict) -> bool:
    """It obeys the instruction in force, if there is one, and has no other style, as that of one that was replaced."""
    return verdict.followed is not False and not verdict.styled
