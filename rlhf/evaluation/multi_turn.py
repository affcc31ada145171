"""Does an instruction given once still hold after many turns, and is a change of it followed? (3.3, Table 30)"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
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

Judgement = tuple[bool, float | None]
"""Of an answer: whether it follows what is in force, and what its content is worth where somebody knows."""
Judged = Callable[[Conversation, Sample], Judgement]


@dataclass(frozen=True, slots=True)
class TurnRates:
    """By user turn (1 is the first): the share of answers that follow what is in force, and their mean content."""

    judgements: dict[int, dict[int, Judgement]]
    """By turn and conversation, as they were given; one that outgrew the context is not in later turns."""

    @property
    def followed(self) -> dict[int, float]:
        return {turn: fmean(follows for follows, _ in found.values()) for turn, found in self._known()}

    @property
    def content(self) -> dict[int, float]:
        """Of answers whose worth somebody knows."""
        worths = {turn: [worth for _, worth in found.values() if worth is not None] for turn, found in self._known()}
        return {turn: fmean(known) for turn, known in worths.items() if known}

    @property
    def lasted(self) -> set[int]:
        """Conversations that came to the last turn that was looked at."""
        return set(self.judgements[max(self.judgements)])

    def of(self, conversations: Collection[int]) -> TurnRates:
        """The rates of these alone."""
        return TurnRates(
            {turn: {i: found[i] for i in found if i in conversations} for turn, found in self.judgements.items()}
        )

    def intervals(self) -> dict[str, tuple[float, float]]:
        """By turn, Wilson's 95% interval of the share that follows."""
        return {
            str(turn): wilson(sum(follows for follows, _ in found.values()), len(found))
            for turn, found in self._known()
        }

    def table(self) -> dict[str, Any]:
        """By turn as text, as report.json has it."""
        return {str(turn): rate for turn, rate in self.followed.items()}

    def _known(self) -> list[tuple[int, dict[int, Judgement]]]:
        return [(turn, found) for turn, found in self.judgements.items() if found]


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
    found: dict[int, dict[int, Judgement]] = {turn: {} for turn in sorted(turns)}
    for part in batches(engine, len(conversations)):
        spoken = {i: [Turn("system", conversations[i].instruction)] for i in part}
        for turn in range(1, max(turns) + 1):
            for i, said in spoken.items():
                said.append(Turn("user", conversations[i].said(turn - 1)))
            if context is not None:
                room = context - max_new_tokens
                spoken = {i: said for i, said in spoken.items() if len(encode_prompt(tokenizer, said)) <= room}
            if not spoken:
                break
            prompts = [
                Prompt(conversations[i].id, tuple(said), conversations[i].source, is_safety=False)
                for i, said in spoken.items()
            ]
            answers = [g[0] for g in sample(engine, tokenizer, prompts, Sampling(1, 0.0, max_new_tokens), seed=0)]
            for (i, said), answer in zip(spoken.items(), answers, strict=True):
                if turn in found:
                    found[turn][i] = judged(conversations[i], answer)
                said.append(Turn("assistant", answer.text or "."))
    return TurnRates(found)


def by_oracle(_: Conversation, answer: Sample) -> Judgement:
    """The micro-world's oracle, which finds the instruction in the prompt."""
    verdict = judge(answer.prompt.turns, answer.text, finished=answer.finished)
    return follows(verdict), verdict.content


def by_rules(instructions: Mapping[str, Checked]) -> Judged:
    """The rules of the conversation's instruction, which need no judge; none of them knows what an answer is worth."""
    return lambda c, answer: (all(instructions[c.instruction].kept(answer.text)), None)


def follows(verdict: Verdict) -> bool:
    """It obeys the instruction in force, if there is one, and has no other style, as that of one that was replaced."""
    return verdict.followed is not False and not verdict.styled
