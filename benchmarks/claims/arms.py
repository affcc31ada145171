"""Every arm: a finished run of which some steps are made again, and the settings that they are made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf.microworld.instructions import ROLE_INSTRUCTIONS, WORD_INSTRUCTIONS, Instruction


@dataclass(frozen=True, slots=True)
class Arm:
    """A finished run of three rounds with some steps made again; what they read beside one another is the run's own."""

    again: tuple[str, ...] = ()
    """The steps, in order."""
    settings: tuple[str, ...] = ()
    """Over the run's own; {run} is its folder."""
    like: str = ""
    """The arm whose steps come before the run's own."""
    times: float = 1.0
    """PPO's scores are multiplied with this."""
    whitened: bool = True


def measured(*policies: str, less: tuple[str, ...]) -> tuple[str, ...]:
    """Evaluation of these policies, with settings that leave most of it out."""
    named = ", ".join(f"{{name: {policy}}}" for policy in policies)
    curves = ("best_of_prompts=2", "best_of_samples=1", "temperatures=[1.0]")
    never = ("attention=0", "diversity_prompts=0", "across_rounds=false")
    return (f"evaluate.policies=[{named}]", *(f"evaluate.{setting}" for setting in (*curves, *never, *less)))


def only(*policies: str) -> tuple[str, ...]:
    """Evaluation of single answers, and of nothing else."""
    return measured(*policies, less=("dialogues=1", "turns=[1]"))


def only_turns(*policies: str, dialogues: int = 64, changes: int = 0) -> tuple[str, ...]:
    """Evaluation of dialogues of many turns, of more of them than a run has, and of nothing else."""
    return measured(*policies, less=("prompts=4", f"dialogues={dialogues}", f"changes={changes}"))


def without(instructions: Sequence[Instruction]) -> tuple[str, ...]:
    """Ghost Attention on dialogues under none of these instructions (single answers are replayed under all), then the
    evaluation of dialogues under them."""
    texts = "[" + ", ".join(instruction.text for instruction in instructions) + "]"
    return (f"gatt.unseen={texts}", f"evaluate.unseen={texts}", *only_turns("rejection-3", "gatt"))


COMBINATIONS = WORD_INSTRUCTIONS[::3]
"""Four words to start and four others to end with; each word is left in the other position, each position to others."""
LOOKING = ("gatt.target_modules=[q_proj, k_proj]", "gatt.replay_share=0.25")
"""Queries and keys learn alone: where to look, not what to say; beside one row in four that is replayed, not in two."""
UNCHECKED = ("gatt.check_targets=false", "gatt.dialogues=120", *only_turns("gatt", dialogues=96))
"""Targets are the best by the reward models alone, as in the paper; with loss on all answers no other way is there.

Half of the run's conversations: these two are held against one another.
"""
BRIEF = ("ppo.iterations=30", "ppo.heldout_prompts=150")
"""A third of the run's PPO, for what is to be seen early: these arms are held against one that is as brief.

Those that are compared by what PPO saw of held-out prompts are not evaluated.
"""
SMALL = ("model.hidden_size=64", "model.intermediate_size=176")
DISTILLED = (
    # From SFT: the policy has to heed a preprompt, and rejection sampling starts from a base that has read none. What
    # judges its answers are the run's reward models.
    "stages=[base, sft, preferences, reward, distill, evaluate]",
    "rounds=1",
    "microworld.caution_share=0.2",
    *only("sft", "distill"),
)
ARMS: Mapping[str, Arm] = {
    # Begun in this order: what others wait for, then the longest, so that no core has nothing to do at the end.
    "run": Arm(),
    "small": Arm(("base", "sft"), SMALL),
    "cautious": Arm(("sft",), DISTILLED),
    "changing": Arm(("gatt", "evaluate"), ("gatt.change_share=0.7", "gatt.dialogues=320", "gatt.epochs=4",
                                           *only_turns("gatt", changes=128))),
    "combinations": Arm(("gatt", "evaluate"), without(COMBINATIONS)),
    "looking": Arm(("gatt", "evaluate"), (*LOOKING, *without(COMBINATIONS), "evaluate.prompts=400")),
    "no-roles": Arm(("gatt", "evaluate"), without(ROLE_INSTRUCTIONS)),
    "all-answers": Arm(("gatt", "evaluate"), (*UNCHECKED, "gatt.train_on=all_answers")),
    "unchecked": Arm(("gatt", "evaluate"), UNCHECKED),
    "scaling": Arm(("scaling",), ("stages=[base, sft, preferences, reward, rejection, scaling]",)),
    "steady": Arm(("evaluate",), only_turns("rejection-3", "gatt", dialogues=96, changes=128)),
    "no-margin": Arm(("reward-1",), ("reward.margin=none",)),
    "large-margin": Arm(("reward-1",), ("reward.margin=large",)),
    "no-safety-loss": Arm(("reward-1",), ("reward.safety_loss_coef=0",)),
    "no-helpfulness": Arm(("reward-1",), ("reward.safety_share=1.0",)),
    "half": Arm(("preferences-1", "reward-1"),
                ("preferences.helpfulness_prompts=1500", "preferences.safety_prompts=1300")),
    "quarter": Arm(("preferences-1", "reward-1"),
                   ("preferences.helpfulness_prompts=750", "preferences.safety_prompts=650")),
    "small-reward": Arm(("reward-1",), SMALL, like="small"),
    "small-borrowed": Arm(("rejection-1", "evaluate"),
                          (*SMALL, "rejection.pool_from={run}", *only("sft", "rejection-1")), like="small"),
    "last-pool": Arm(("rejection-3", "evaluate"),
                     ("rejection.pool=last", "rejection.pool_from={run}", *only("rejection-3"))),
    "no-refresh": Arm(("rejection-2", "rejection-3", "evaluate"),
                      ("refresh=false", *only("rejection-1", "rejection-2", "rejection-3"))),
    "no-kl": Arm(("ppo", "evaluate"), ("ppo.kl_coef=0", *only("gatt", "ppo"))),
    "brief": Arm(("ppo", "evaluate"), (*BRIEF, *only("gatt", "ppo"))),
    "small-kl": Arm(("ppo",), ("ppo.kl_coef=0.05", *BRIEF)),
    "helpfulness-only": Arm(("ppo", "evaluate"), ("ppo.combine=helpfulness", *BRIEF, *only("gatt", "ppo"))),
    "ten-times": Arm(("ppo",), BRIEF, times=10),
    "raw": Arm(("ppo",), BRIEF, whitened=False),
    "raw-ten-times": Arm(("ppo",), BRIEF, times=10, whitened=False),
    "general": Arm(("reward-1", "evaluate"),
                   # One that the first round's pairs made reads what the last round's policies say.
                   ("rounds=1", "reward.helpfulness_share=0.5", *only(),
                    "evaluate.policies=[{name: sft}, {name: rejection-3, path: '{run}/rejection-3'}, {name: ppo}]")),
    "generic": Arm(("distill", "evaluate"), (*DISTILLED, "distill.preprompt=generic"), like="cautious"),
    "category": Arm(("distill", "evaluate"), DISTILLED, like="cautious"),
    "unselected": Arm(("distill", "evaluate"), (*DISTILLED, "distill.keep=all"), like="cautious"),
    "on-all-prompts": Arm(("distill", "evaluate"), (*DISTILLED, "distill.asked=all"), like="cautious"),
}  # fmt: skip
