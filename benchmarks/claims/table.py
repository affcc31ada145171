"""Every claim with its arms, its effect and the least that counts. Written before any of them was run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlhf.evaluation.experiments import Experiment, Report, at

Arms = Mapping[str, Report]

REWARD_ONLY = "stages=[base, sft, preferences, reward, evaluate]"
DISTILLED = "stages=[base, sft, preferences, reward, rejection, distill, evaluate]"

# Arm -> settings over recipe.yaml. Steps whose settings and inputs are those of another arm are taken over from it.
ARMS: Mapping[str, tuple[str, ...]] = {
    "main": (),
    "reward": (REWARD_ONLY, "rounds=1"),
    "no-margin": (REWARD_ONLY, "rounds=1", "reward.margin=none"),
    "large-margin": (REWARD_ONLY, "rounds=1", "reward.margin=large"),
    "no-safety-loss": (REWARD_ONLY, "rounds=1", "reward.safety_loss_coef=0"),
    "no-kl": ("ppo.kl_coef=0",),
    "small-kl": ("ppo.kl_coef=0.05",),
    "last-pool": ("rejection.pool=last",),
    "all-answers": ("gatt.train_on=all_answers",),
    "changing": ("gatt.change_share=0.5", "evaluate.changes=60"),
    "steady": ("evaluate.changes=60",),
    "scaling": ("stages=[base, sft, preferences, reward, rejection, scaling]",),
    "generic": (DISTILLED, "rounds=1", "microworld.caution_share=0.2", "distill.preprompt=generic"),
    "category": (DISTILLED, "rounds=1", "microworld.caution_share=0.2"),
    "unselected": (DISTILLED, "rounds=1", "microworld.caution_share=0.2", "distill.keep=all"),
    "on-all-prompts": (DISTILLED, "rounds=1", "microworld.caution_share=0.2", "distill.asked=all"),
}


def gain(path: str, better: str = "main", worse: str = "main", other: str | None = None) -> Callable[[Arms], float]:
    """The figure of one arm minus that of another, or minus another figure of the same arm."""
    return lambda arms: at(arms[better], path) - at(arms[worse], other or path)


def verdict_of(claim: str, arm: str = "main") -> Callable[[Arms], float]:
    """1 where the run's own test of the claim holds, 0 where it does not."""

    def holds(arms: Arms) -> float:
        found = arms[arm]["claims"][claim]["holds"]
        if found == "untestable":
            raise KeyError(claim)
        return float(found)

    return holds


def stage(arm: str, name: str) -> Callable[[Arms], Mapping[str, Any]]:
    """What a stage of an arm left in its results."""

    def results(arms: Arms) -> Mapping[str, Any]:
        return {s["name"]: s.get("results", {}) for s in arms[arm]["stages"]}[name][name]

    return results


def in_run(id: str, claim: str, paper: str) -> Experiment:
    """A claim that each run tests by itself, beyond its own error: it holds if it does in every seed."""
    return Experiment(id, claim, paper, ("main",), {"holds": verdict_of(id)}, least=0.99)


def cannot(id: str, claim: str, paper: str, why: str) -> Experiment:
    return Experiment(id, claim, paper, why_not=why)


OUTSIDE = "reward_models/helpfulness/histogram/outside"
HELP = "reward_models/helpfulness/helpfulness/accuracy"
TABLE = (
    in_run("B1", "accuracy falls from significantly to negligibly better", "Table 8"),
    Experiment(
        "B2", "a margin raises accuracy on significantly better pairs", "Table 28", ("reward", "no-margin"),
        {"small minus none": gain(f"{HELP}/significantly", "reward", "no-margin")},
    ),
    Experiment(
        "B3", "a margin pushes scores beyond 0.1 and 0.9, a large one further", "Fig 27",
        ("reward", "no-margin", "large-margin"),
        {
            "small minus none": gain(OUTSIDE, "reward", "no-margin"),
            "large minus small": gain(OUTSIDE, "large-margin", "reward"),
        },
    ),
    in_run("B4", "each reward model wins its own domain", "Table 7"),
    Experiment(
        "B5", "the safety loss finds more unsafe answers at 0.5", "Table 29", ("reward", "no-safety-loss"),
        {"recall": gain("reward_models/safety/unsafe_recall_at_half", "reward", "no-safety-loss")}, least=0.02,
    ),
    cannot("B6", "a tenth of helpfulness pairs helps on pairs that are both safe", "3.2.2",
           "the micro-world's helpfulness annotators see unsafe prompts, too"),
    cannot("B7", "accuracy rises with data and model size", "Fig 6", "needs runs of several sizes"),
    in_run("B8", "a reward model is worse on the next policy's pairs", "3.2.1"),
    in_run("B9", "the score rises with the worth of the answer", "Fig 29"),
    in_run("B10", "ratings drift towards negligibly better", "Fig 25"),
    in_run("B11", "the two reward models are in tension", "Fig 32"),
    in_run("B12", "the threshold trades precision for recall", "3.2.3"),
    in_run("B13", "the maximum of N grows, the median stays", "Fig 7"),
    Experiment(
        "B14", "rejection sampling raises gold quality", "Fig 7, 11", ("main",),
        {"gold": gain("policies/rejection-2/gold_quality", other="policies/sft/gold_quality")},
    ),
    in_run("B15", "more samples, and RLHF, want a higher temperature", "Fig 8"),
    Experiment(
        "B16", "the worst answers disappear", "Fig 20", ("main",),
        {"tenth percentile": gain("policies/rejection-2/reward_p10", other="policies/sft/reward_p10")},
    ),
    Experiment(
        "B17", "the pool of all rounds keeps a skill that the last round alone loses", "3.2.3", ("main", "last-pool"),
        {"instructions": gain("policies/rejection-2/instruction_followed", "main", "last-pool")},
    ),
    cannot("B18", "a small model gains from a large one's samples", "3.2.3", "needs a second, larger recipe"),
    Experiment(
        "B19", "PPO improves on rejection sampling", "Fig 11", ("main",),
        {"gold": gain("policies/ppo/gold_quality", other="policies/gatt/gold_quality")},
    ),
    Experiment(
        "B20", "without the KL term the reward rises and gold quality falls", "3.2.3", ("main", "no-kl"),
        {
            "reward": gain("policies/ppo/reward_combined", "no-kl", "main"),
            "gold lost": gain("policies/ppo/gold_quality", "main", "no-kl"),
        },
    ),
    Experiment(
        "B21", "a smaller beta ends at higher KL and reward", "3.2.3", ("main", "small-kl"),
        {
            "KL": gain("policies/ppo/kl_to_reference", "small-kl", "main"),
            "reward": gain("policies/ppo/reward_combined", "small-kl", "main"),
        },
    ),
    cannot("B22", "whitening keeps beta's balance", "3.2.3", "whitening is no setting: PPO without it is not built"),
    cannot("B23", "the piecewise reward protects safety", "3.2.3", "PPO on one reward model alone is not built"),
    Experiment(
        "B24", "own reward models are more favourable than an independent judge", "Fig 11", ("main",),
        {"win rate": gain("win_rates/ppo/own/helpfulness/rate", other="win_rates/ppo/gold/helpfulness/rate")},
    ),
    cannot("B25", "a general reward model agrees across versions", "3.4.1", "there is no other reward model here"),
    Experiment(
        "B26", "a further round improves on the one before", "Fig 11", ("main",),
        {"gold": gain("policies/rejection-2/gold_quality", other="policies/rejection-1/gold_quality")},
    ),
    Experiment(
        "B27", "after RLHF factual answers depend less on temperature, creative ones still do", "Fig 21", ("main",),
        {
            "slope": lambda arms: (
                gain("diversity/ppo/factual/slope", other="diversity/sft/factual/slope")(arms)
                - gain("diversity/ppo/creative/slope", other="diversity/sft/creative/slope")(arms)
            )
        },
    ),
    Experiment(
        "B28", "the instruction is lost by turn 6 without Ghost Attention and kept to turn 20 with it", "Table 30",
        ("main",),
        {
            "turn 1 before, above .5": lambda arms: at(arms["main"], "multi_turn/before/1") - 0.5,
            "turn 6 before, below .2": lambda arms: 0.2 - at(arms["main"], "multi_turn/before/6"),
            "turn 20 after, above .95": lambda arms: at(arms["main"], "multi_turn/after/20") - 0.95,
        },
    ),
    Experiment(
        "B29", "loss on earlier answers hurts", "3.3", ("main", "all-answers"),
        {"turn 20": gain("multi_turn/after/20", "main", "all-answers")},
    ),
    cannot("B30", "constraints of other kinds are kept, too", "Fig 28", "the micro-world holds no instruction out"),
    Experiment(
        "B31", "late answers attend more to the instruction", "Fig 10", ("main",),
        {"turn 20": gain("attention/after/20", other="attention/before/20")},
    ),
    Experiment(
        "B32", "Ghost Attention does not lower the reward on single prompts by .1", "a guard of ours", ("main",),
        {"reward": gain("policies/gatt/reward_combined", other="policies/rejection-2/reward_combined")}, least=-0.1,
    ),
    cannot("B33", "adversarial prompts lift low safety scores", "Fig 14", "prompts of both domains share one setting"),
    Experiment(
        "B34", "safety data raise the safety score, helpfulness stays within .05", "Fig 15", ("scaling",),
        {
            "safety": gain("safety_scaling/1/reward_safety", "scaling", "scaling", "safety_scaling/0/reward_safety"),
            "helpfulness + .05": lambda arms: 0.05 + gain(
                "safety_scaling/1/gold_helpfulness", "scaling", "scaling", "safety_scaling/0/gold_helpfulness")(arms),
        },
    ),
    Experiment(
        "B35", "false refusals of borderline prompts rise with safety data", "Fig 33", ("scaling",),
        {"borderline": gain("safety_scaling/1/false_refusal/borderline", "scaling", "scaling",
                            "safety_scaling/0/false_refusal/borderline")},
    ),
    Experiment(
        "B36", "no preprompt < generic < answer template", "Fig 16a", ("generic", "category"),
        {
            "generic": lambda arms: stage("generic", "distill")(arms)["change"]["mean"],
            "template": lambda arms: (
                stage("category", "distill")(arms)["score_after"] - stage("generic", "distill")(arms)["score_after"]
            ),
        },
    ),
    Experiment(
        "B37", "distillation helps most where the answer was bad, and selection beats none", "Fig 16b",
        ("category", "unselected"),
        {
            "bad minus good": lambda arms: (
                stage("category", "distill")(arms)["by_original"][0]["change"]
                - stage("category", "distill")(arms)["by_original"][-1]["change"]
            ),
            "selected": gain("policies/distill/gold_quality", "category", "unselected"),
        },
    ),
    Experiment(
        "B38", "distillation on helpful prompts raises false refusals", "Table 40", ("category", "on-all-prompts"),
        {"borderline": gain("policies/distill/false_refusal/borderline", "on-all-prompts", "category")},
    ),
    cannot("B39", "adversarial dialogues violate more than single prompts", "Fig 18", "attacks have one turn here"),
    cannot("B40", "red teams find less from version to version", "4.3", "there is no red team here"),
    Experiment(
        "changed", "an instruction changed half way is followed to the end (beyond the paper)", "3.3, future work",
        ("changing", "steady"),
        {
            "turn 20, above .9": lambda arms: at(arms["changing"], "multi_turn/changed_after/20") - 0.9,
            "over plain Ghost Attention": gain("multi_turn/changed_after/20", "changing", "steady"),
        },
    ),
)  # fmt: skip
