"""Settings: Ghost Attention."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from rlhf.schema.setting import Positive, Rate, Section, Share, ours, paper
from rlhf.schema.shared import Combine, FineTune, Gate, RulesAt, Source


class InstructionLists(Section):
    """What instructions are drawn from (A.3.5); without effect in the micro-world, which has its own."""

    path: str | None = ours(None, "JSON file of lists; none: the policy writes them", "'by Llama 2-Chat itself'")
    items: Positive = ours(50, "items the policy is asked for, a list")


class GAttConfig(FineTune, Combine, Gate):
    """Ghost Attention (3.3)."""

    data: tuple[Source, ...] = ours((), "dialogues of several turns, or prompts", "no honest default")
    users: Literal["data", "policy"] = ours(
        "data", "who speaks for the user: dialogues of the data, or the policy from the data's prompts on"
    )
    instructions: InstructionLists = InstructionLists()
    change_share: Share = ours(
        0.0, "share of conversations whose instruction is changed or withdrawn", "future work in the paper (3.3)"
    )
    unseen: tuple[str, ...] = ours(
        (), "no conversation is under an instruction that holds one of these texts", "what is never trained (Fig 28)"
    )
    dialogues: Positive = ours(1000, "conversations to make")
    cuts: Positive = ours(8, "training rows a conversation: one ends in each of so many stretches", "read in one pass")
    min_turns: Positive = ours(2, "user turns of the shortest")
    max_turns: Positive = ours(20, "user turns of the longest", "consistent 'up to 20+ turns' (3.3)")
    samples_per_turn: Positive = ours(4, "answers sampled a turn, the best by reward is kept", "'analogous to RS'")
    temperature: Rate = ours(1.0, "of those samples")
    judged: Literal["dialogue", "turn"] = ours("dialogue", "reward models see all turns, or the last", "as in 3.2.2")
    train_on: Literal["last_answer", "all_answers"] = paper(
        "last_answer", "3.3", "which answers of a dialogue bear loss"
    )
    check_targets: bool = ours(
        False, "an answer of a dialogue that a rule sees miss its instruction is no target", "reward models may not"
    )
    rules: RulesAt = RulesAt()
    short_share: Share = paper(0.5, "A.3.5", "share of instructions made less verbose")
    replay_share: Share = ours(
        0.5, "share of the rows that are the policy's own single answers", "keeps what it knew", lt=1
    )
    target_modules: tuple[str, ...] = ours(
        (), "layers that learn, by name, such as [q_proj, k_proj]; none: all", "what attention looks at carries over"
    )
    max_new_tokens: Positive = ours(512, "longest answer in tokens")

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.min_turns > self.max_turns:
            raise ValueError(f"min_turns ({self.min_turns}) is more than max_turns ({self.max_turns})")
        if self.rules.path and not self.check_targets:
            raise ValueError("rules.path has no effect without check_targets=true")
        if self.check_targets and self.train_on == "all_answers":
            raise ValueError("check_targets looks at last answers, and with train_on=all_answers all are targets")
        return self
