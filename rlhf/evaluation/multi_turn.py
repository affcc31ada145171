"""Does an instruction given once still hold after many turns? (3.3, Table 30)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data.conversations import Conversation
from rlhf.data.types import Prompt, Turn
from rlhf.generation.protocol import Sampling
from rlhf.microworld.oracle import judge
from rlhf.rollout import sample


@dataclass(frozen=True, slots=True)
class TurnRates:
    """By user turn (1 is the first): the share of answers that follow the instruction, and their mean content."""

    followed: dict[int, float]
    content: dict[int, float]
    n: int


def follow_rates(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    turns: Sequence[int],
    max_new_tokens: int,
) -> TurnRates:
    """Hold every conversation greedily, answer by answer, and judge the answers at `turns`."""
    spoken = [[Turn("system", c.instruction)] for c in conversations]
    followed, content = {}, {}
    greedy = Sampling(1, 0.0, max_new_tokens)
    for turn in range(1, max(turns) + 1):
        prompts = []
        for c, said in zip(conversations, spoken, strict=True):
            said.append(Turn("user", c.user_turns[turn - 1]))
            prompts.append(Prompt(c.id, tuple(said), "microworld", is_safety=False))
        answers = [group[0] for group in sample(policy, tokenizer, prompts, greedy, seed=0)]
        if turn in turns:
            verdicts = [judge(a.prompt.turns, a.text, finished=a.finished) for a in answers]
            followed[turn] = sum(bool(v.followed) for v in verdicts) / len(verdicts)
            content[turn] = sum(v.content for v in verdicts) / len(verdicts)
        for said, answer in zip(spoken, answers, strict=True):
            said.append(Turn("assistant", answer.text or "."))
    return TurnRates(followed, content, len(conversations))
