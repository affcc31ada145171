"""A conversation with one or several policies: one history, their answers, both scores, and the pairs one keeps.

Every policy answers the same history, so that any two answers are a preference pair, as in the paper's own collection
(3.2.1). The next question follows the preferred answer, or the first where none was preferred.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.data.types import Preference, Rating, Turn
from rlhf.errors import DataError
from rlhf.generation.protocol import Sampling
from rlhf.talk.answer import Answer, Voice

if TYPE_CHECKING:
    from rlhf.models.reward_models import RewardModels


@dataclass(frozen=True, slots=True)
class Reply:
    """A policy's answer, finished or not, with how it was sampled and, once finished, what the reward models say."""

    policy: str
    answer: Answer
    temperature: float
    seed: int
    helpfulness: float | None = None
    safety: float | None = None

    @property
    def facts(self) -> str:
        """`helpfulness 1.85  safety 2.60  temperature 1  seed 0`, as far as known."""
        scores = [("helpfulness", self.helpfulness), ("safety", self.safety)]
        shown = [f"{name} {value:.2f}" for name, value in scores if value is not None]
        shown += [f"temperature {self.temperature:g}", f"seed {self.seed}"]
        if self.answer.finish_reason == "length":
            shown.append("cut at its longest")
        return "  ".join(shown)


@dataclass
class Conversation:
    """What was said, and the answers to the last question."""

    voices: Sequence[Voice]
    rewards: RewardModels | None
    sampling: Sampling
    seed: int
    system: str = ""
    turns: list[Turn] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    preferred: int = 0

    def begin(self) -> None:
        """Forget what was said."""
        self.turns, self.replies, self.preferred = [], [], 0

    def ask(self, question: str) -> Iterator[Sequence[Reply]]:
        """Ask; yields the replies as they grow, all policies in turn. A question that is refused leaves no trace."""
        before = list(self.turns)
        if self.replies:
            before.append(Turn("assistant", self.replies[self.preferred].answer.text))
        elif self.system and not before:
            before.append(Turn("system", self.system))
        yield from self._answered([*before, Turn("user", question)], earlier=[], seed=self.seed)

    def again(self) -> Iterator[Sequence[Reply]]:
        """Another answer of every policy to the same question, with the next seed, beside those there are."""
        if not self.replies:
            raise DataError("there is no question to answer again")
        seed = max(reply.seed for reply in self.replies) + 1
        yield from self._answered(self.turns, earlier=self.replies, seed=seed)

    def _answered(self, turns: list[Turn], *, earlier: list[Reply], seed: int) -> Iterator[Sequence[Reply]]:
        streams = [voice.answer(turns, self.sampling, seed=seed) for voice in self.voices]
        new = [Reply(v.name, Answer((), (), ""), self.sampling.temperature, seed) for v in self.voices]
        while any(reply.answer.finish_reason is None for reply in new):
            for i, stream in enumerate(streams):
                if new[i].answer.finish_reason is None:
                    new[i] = replace(new[i], answer=next(stream))
            yield [*earlier, *new]
        self.turns, self.replies = turns, [*earlier, *self._scored(new)]
        self.preferred = self.preferred if earlier else 0
        yield self.replies

    def _scored(self, replies: list[Reply]) -> list[Reply]:
        if self.rewards is None:
            return replies
        rows = [reply.answer.prompt_ids + reply.answer.token_ids for reply in replies]
        # The combined score is not shown: which prompts are safety prompts is not known in a conversation.
        scores = self.rewards(rows, [False] * len(rows), safety_threshold=0.0)
        pairs = zip(replies, scores.helpfulness.tolist(), scores.safety.tolist(), strict=True)
        return [replace(reply, helpfulness=h, safety=s) for reply, h, s in pairs]

    def prefer(self, number: int, rating: Rating) -> list[Preference]:
        """Prefer answer `number` (from 1) to every other answer: one pair for each that differs from it.

        Raises:
            DataError: if there is no such answer, or nothing that differs from it.
        """
        if not 1 <= number <= len(self.replies):
            raise DataError(f"there is no answer {number}", hints=[f"answers: 1 to {len(self.replies)}"])
        chosen = self.replies[number - 1].answer.text
        others = {reply.answer.text for reply in self.replies} - {chosen}
        if not others:
            raise DataError("no other answer differs from this one", hints=["ask for another: r"])
        self.preferred = number - 1
        return [_pair(tuple(self.turns), chosen, other, rating) for other in sorted(others)]


def keep(path: Path, pairs: Sequence[Preference]) -> None:
    """Add pairs to a file of JSON lines, in the shape that `reward.data` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(json.dumps(pair.to_json(), ensure_ascii=False) + "\n" for pair in pairs)


def _pair(prompt: tuple[Turn, ...], chosen: str, rejected: str, rating: Rating) -> Preference:
    said = json.dumps([[turn.content for turn in prompt], chosen, rejected])
    return Preference(
        id=f"chat-{hashlib.sha256(said.encode()).hexdigest()[:16]}",
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        source="chat",
        rating=rating,
        chosen_safe=None,
        rejected_safe=None,
        is_safety=False,
    )
