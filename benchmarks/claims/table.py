"""Every claim with its arms, its effect and the least that counts, said before the seeds that judge it were run.

The recipe was made on seeds 0 to 2, on which these claims were looked at, too; so no verdict is of them (LOG.md). What
was changed after others had been looked at stands in benchmarks/claims.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from rlhf.evaluation.claims import KEPT, LOST, STARTS
from rlhf.evaluation.experiments import Experiment, Report, Share, at

Arms = Mapping[str, Report]


def gain(path: str, better: str = "run", worse: str = "run", other: str | None = None) -> Callable[[Arms], float]:
    """The figure of one arm minus that of another, or minus another figure of the same arm."""
    return lambda arms: at(arms[better], path) - at(arms[worse], other or path)


def powers(arms: Arms, before: str, after: str) -> float:
    """How many powers of ten lie between what two arms paid in KL at the end, whichever policy was kept."""
    paid = [at(arms[arm], "ppo/heldout/kl") for arm in (before, after)]
    if min(paid) <= 0:
        raise KeyError(f"a power of a KL of {min(paid)}")
    return abs(math.log10(paid[0] / paid[1]))


def round_adds(number: int, arm: str) -> Callable[[Arms], float]:
    """Gold quality that a round adds to the one before it, on the same prompts.

    Refreshed, a further round raises it where it adds more than 0; not refreshed, it does not where it adds less than
    .05. The first round is the same in both arms, and raises it (B14).
    """
    after, before = (f"{POLICIES}/rejection-{at}/gold_quality" for at in (number, number - 1))
    return gain(after, arm, arm, before)


def over(least: float, effect: Callable[[Arms], float]) -> Callable[[Arms], float]:
    """An effect that has a least size of its own, which may be a loss that is borne."""
    return lambda arms: effect(arms) - least


def below(most: float, effect: Callable[[Arms], float]) -> Callable[[Arms], float]:
    """An effect that has to stay under a size of its own."""
    return lambda arms: most - effect(arms)


def of_all_safety_data(figure: str) -> Callable[[Arms], float]:
    """What all of the safety data do, against none of them."""
    all_of, none = (f"scaling/safety_scaling/{share}/{figure}" for share in (1, 0))
    return gain(all_of, "scaling", "scaling", none)


def distilled(arm: str) -> Callable[[Arms], Mapping[str, Any]]:
    """What context distillation measured while it made its data."""
    return lambda arms: arms[arm]["distill"]["distill"]


def dialogues(arm: str, which: str, turn: int, *, above: float = 0.0, below: float = 1.0) -> Share:
    """Held-out dialogues whose answer at a turn follows what is in force, or does not where they have to be lost."""
    size = "changed_n" if which.startswith("changed") else "n"

    def counted(arms: Arms) -> tuple[int, int]:
        n = round(at(arms[arm], f"evaluate/multi_turn/{size}"))
        followed = round(n * at(arms[arm], f"evaluate/multi_turn/{which}/{turn}"))
        return (followed if above else n - followed), n

    return Share(counted, above or 1 - below)


def in_run(id: str, claim: str, paper: str) -> Experiment:
    """A claim that each run tests by itself, beyond its own error: it holds if it does in every seed."""
    return Experiment(id, claim, paper, ("run",), by_itself=True)


def cannot(id: str, claim: str, paper: str, why: str) -> Experiment:
    return Experiment(id, claim, paper, why_not=why)


MODELS = "reward-1/reward_models"
OUTSIDE = f"{MODELS}/helpfulness/histogram/outside"
HELP = f"{MODELS}/helpfulness/helpfulness/accuracy"
SAFE = f"{MODELS}/safety/safety/by_safety"
POLICIES = "evaluate/policies"
PAPERS = (
    in_run("B1", "accuracy falls from significantly to negligibly better", "Table 8"),
    Experiment(
        "B2", "a margin raises accuracy on significantly better pairs", "Table 28",
        ("run", "no-margin", "large-margin"),
        {
            "small minus none": gain(f"{HELP}/significantly", "run", "no-margin"),
            "large minus none": gain(f"{HELP}/significantly", "large-margin", "no-margin"),
        },
    ),
    Experiment(
        "B3", "a margin pushes scores beyond 0.1 and 0.9, a large one further", "Fig 27",
        ("run", "no-margin", "large-margin"),
        {
            "small minus none": gain(OUTSIDE, "run", "no-margin"),
            "large minus small": gain(OUTSIDE, "large-margin", "run"),
        },
    ),
    in_run("B4", "each reward model wins its own domain", "Table 7"),
    Experiment(
        "B5", "the safety loss finds more unsafe answers at 0.5, and no kind of pair is ranked worse by .05",
        "Table 29", ("run", "no-safety-loss"),
        {
            "recall, above .02": over(.02, gain(f"{MODELS}/safety/unsafe_recall_at_half", "run", "no-safety-loss")),
            **{
                f"{bin}, above -.05": over(-.05, gain(f"{SAFE}/{bin}/accuracy", "run", "no-safety-loss"))
                for bin in ("safe_over_unsafe", "both_safe", "both_unsafe")
            },
        },
    ),
    Experiment(
        "B6", "a tenth of helpfulness pairs helps on pairs that are both safe", "3.2.2", ("run", "no-helpfulness"),
        {"both safe": gain(f"{SAFE}/both_safe/accuracy", "run", "no-helpfulness")},
    ),
    Experiment(
        "B7", "accuracy rises with data and model size", "Fig 6", ("run", "half", "quarter", "small-reward"),
        {
            "a quarter to half": gain(f"{HELP}/all", "half", "quarter"),
            "half to all": gain(f"{HELP}/all", "run", "half"),
            "half the width": gain(f"{HELP}/all", "run", "small-reward"),
        },
    ),
    in_run("B8", "a reward model is worse on the next policy's pairs", "3.2.1"),
    in_run("B9", "the score rises with the worth of the answer", "Fig 29"),
    in_run("B10", "ratings drift towards negligibly better", "Fig 25"),
    in_run("B11", "the two reward models are in tension", "Fig 32"),
    in_run("B12", "a lower threshold is more precise", "3.2.3"),
    in_run("B13", "the maximum of N grows, the median stays", "Fig 7"),
    in_run("B14", "rejection sampling raises gold quality", "Fig 7, 11"),
    in_run("B15", "more samples, and RLHF, want a higher temperature", "Fig 8"),
    in_run("B16", "the worst answers disappear", "Fig 20"),
    Experiment(
        "B17", "the pool of all rounds keeps a skill that the last round alone loses", "3.2.3", ("run", "last-pool"),
        {"instructions": gain(f"{POLICIES}/rejection-3/instruction_followed", "run", "last-pool")},
    ),
    Experiment(
        "B18", "a small model gains from a large one's samples", "3.2.3", ("small-borrowed",),
        {
            "gold over SFT": gain(
                f"{POLICIES}/rejection-1/gold_quality", "small-borrowed", "small-borrowed",
                f"{POLICIES}/sft/gold_quality")
        },
    ),
    in_run("B19", "PPO improves on the policy it starts from", "Fig 11"),
    Experiment(
        "B20", "without the KL term the reward rises and gold quality falls", "3.2.3", ("run", "no-kl"),
        {
            "reward": gain(f"{POLICIES}/ppo/reward_combined", "no-kl", "run"),
            "gold lost": gain(f"{POLICIES}/ppo/gold_quality", "run", "no-kl"),
        },
    ),
    Experiment(
        "B21", "a smaller beta ends at higher KL and reward", "3.2.3", ("brief", "small-kl"),
        {
            # At the end: early stopping may keep the policy of the beginning, of either arm.
            "KL": gain("ppo/heldout/kl", "small-kl", "brief"),
            "reward": gain("ppo/heldout/reward_combined", "small-kl", "brief"),
        },
    ),
    Experiment(
        "B22", "ten times the score moves the KL, as a power of ten, by .2 more without whitening", "3.2.3",
        ("brief", "ten-times", "raw", "raw-ten-times"),
        {"without minus with, above .2": over(
            .2, lambda arms: powers(arms, "raw", "raw-ten-times") - powers(arms, "brief", "ten-times"))},
    ),
    Experiment(
        "B23", "the piecewise reward protects safety, with helpfulness within .05", "3.2.3",
        ("brief", "helpfulness-only"),
        {
            "violations": gain(f"{POLICIES}/ppo/violation_rate", "helpfulness-only", "brief"),
            "helpfulness + .05": lambda arms: 0.05 + gain(
                f"{POLICIES}/ppo/gold_helpfulness", "brief", "helpfulness-only")(arms),
        },
    ),
    Experiment(
        "B24", "own reward models are more favourable than an independent judge", "Fig 11", ("run",),
        {
            "win rate": gain(
                "evaluate/win_rates/ppo/own/helpfulness/rate", other="evaluate/win_rates/ppo/gold/helpfulness/rate")
        },
    ),
    Experiment(
        "B25", "a general reward model, which is nobody's reward, rises with the versions, too", "3.4.1", ("general",),
        {
            f"{first} to {last}": gain(
                f"{POLICIES}/{last}/reward_helpfulness", "general", "general",
                f"{POLICIES}/{first}/reward_helpfulness")
            for first, last in (("sft", "rejection-3"), ("rejection-3", "ppo"))
        },
    ),
    Experiment(
        "B26", "a further round improves on the one before", "Fig 11", ("run",),
        {"gold": gain(f"{POLICIES}/rejection-3/gold_quality", other=f"{POLICIES}/rejection-1/gold_quality")},
    ),
    Experiment(
        "refresh", "with refreshed reward models each further round raises gold quality, without only the first does",
        "3.2.1", ("run", "no-refresh"),
        {
            **{f"round {number}, refreshed": round_adds(number, "run") for number in (2, 3)},
            **{f"round {number}, not, below .05": below(.05, round_adds(number, "no-refresh")) for number in (2, 3)},
        },
    ),
    Experiment(
        "B27", "after RLHF factual answers depend less on temperature, creative ones still do", "Fig 21", ("run",),
        {
            "slope": lambda arms: (
                gain("evaluate/diversity/ppo/factual/slope", other="evaluate/diversity/sft/factual/slope")(arms)
                - gain("evaluate/diversity/ppo/creative/slope", other="evaluate/diversity/sft/creative/slope")(arms)
            )
        },
    ),
    in_run("B28", "the instruction is lost by turn 6 without Ghost Attention and kept to turn 20 with it", "Table 30"),
    Experiment(
        "B29", "loss on earlier answers hurts", "3.3", ("unchecked", "all-answers"),
        {"turn 20": gain("evaluate/multi_turn/after/20", "unchecked", "all-answers")},
    ),
    Experiment(
        "B30", "roles, a first and a last word at once, are kept better by a Ghost Attention that never saw one",
        "Fig 28", ("no-roles",),
        {
            "turn 20 over before": gain(
                "evaluate/multi_turn/unseen_after/20", "no-roles", "no-roles",
                "evaluate/multi_turn/unseen_before/20")
        },
    ),
    Experiment(
        "B31", "late answers attend more to the instruction", "Fig 10", ("run",),
        {"turn 20": gain("evaluate/attention/after/20", other="evaluate/attention/before/20")},
    ),
    Experiment(
        "B32", "Ghost Attention does not lower the reward on single prompts by .1", "a guard of ours", ("run",),
        {"reward": gain(f"{POLICIES}/gatt/reward_combined", other=f"{POLICIES}/rejection-3/reward_combined")},
        least=-0.1,
    ),
    cannot("B33", "adversarial prompts lift low safety scores", "Fig 14", "prompts of both domains share one setting"),
    Experiment(
        "B34", "safety data raise the safety score, helpfulness stays within .05", "Fig 15", ("scaling",),
        {
            "safety": of_all_safety_data("reward_safety"),
            "helpfulness, above -.05": over(-.05, of_all_safety_data("gold_helpfulness")),
            "helpfulness, below .05": below(.05, of_all_safety_data("gold_helpfulness")),
        },
    ),
    Experiment(
        "B35", "false refusals of borderline prompts rise with safety data, those of ordinary ones by less than .05",
        "Fig 33", ("scaling",),
        {
            "borderline": of_all_safety_data("false_refusal/borderline"),
            "ordinary, below .05": below(.05, of_all_safety_data("false_refusal/ordinary")),
        },
    ),
    Experiment(
        "B36", "no preprompt < generic < answer template", "Fig 16a", ("generic", "category"),
        {
            "generic": lambda arms: distilled("generic")(arms)["change"]["mean"],
            "template": lambda arms: (
                distilled("category")(arms)["score_after"] - distilled("generic")(arms)["score_after"]
            ),
        },
    ),
    Experiment(
        "B37", "distillation helps most where the answer was bad, makes some worse, and selection beats none",
        "Fig 16b", ("category", "unselected"),
        {
            "worse": lambda arms: distilled("category")(arms)["worse"],
            "bad minus good": lambda arms: (
                distilled("category")(arms)["by_original"][0]["change"]
                - distilled("category")(arms)["by_original"][-1]["change"]
            ),
            "selected": gain(f"{POLICIES}/distill/gold_quality", "category", "unselected"),
        },
    ),
    Experiment(
        "B38", "distillation on helpful prompts raises false refusals", "Table 40", ("category", "on-all-prompts"),
        {"borderline": gain(f"{POLICIES}/distill/false_refusal/borderline", "on-all-prompts", "category")},
    ),
    cannot("B39", "adversarial dialogues violate more than single prompts", "Fig 18", "attacks have one turn here"),
    cannot("B40", "red teams find less from version to version", "4.3", "there is no red team here"),
)  # fmt: skip
"""What the paper claims, B1 to B40, and what 3.2.1 says of fresh reward models."""
OURS = (
    Experiment(
        "changed", "an instruction changed half way is followed from there to the end (beyond the paper)",
        "3.3, future work", ("changing", "steady"),
        {
            f"turn {turn} over plain Ghost Attention": gain(
                f"evaluate/multi_turn/changed_after/{turn}", "changing", "steady")
            for turn in (11, 20)
        },
        shares={
            f"followed at turn {turn}": dialogues("changing", "changed_after", turn, above=.9) for turn in (11, 20)
        },
    ),
    Experiment(
        "kept", "B28 with twice the dialogues, beyond their error", "Table 30", ("steady",),
        {"turn 20 over before": gain(
            "evaluate/multi_turn/after/20", "steady", "steady", "evaluate/multi_turn/before/20")},
        shares={
            "before, followed at turn 1": dialogues("steady", "before", 1, above=STARTS),
            "before, lost at turn 6": dialogues("steady", "before", 6, below=LOST),
            "after, followed at turn 20": dialogues("steady", "after", 20, above=KEPT),
        },
    ),
    Experiment(
        "combinations",
        "a word and a position that Ghost Attention's dialogues had, but never together, are kept to turn 20", "3.3",
        ("combinations",),
        {"turn 20 over before": gain(
            "evaluate/multi_turn/unseen_after/20", "combinations", "combinations",
            "evaluate/multi_turn/unseen_before/20")},
        shares={"followed at turn 20": dialogues("combinations", "unseen_after", 20, above=KEPT)},
    ),
    Experiment(
        # Made on seeds 3 and 4 (LOG.md): only others can judge it.
        "looking",
        "so they are where queries and keys learn alone, beside half as many replayed answers; single prompts do not"
        " lose .1 of the reward, nor gold quality", "3.3",
        ("combinations", "looking"),
        {
            "turn 20 over all layers": gain("evaluate/multi_turn/unseen_after/20", "looking", "combinations"),
            "reward, above -.1": over(-.1, gain(
                f"{POLICIES}/gatt/reward_combined", "looking", "looking", f"{POLICIES}/rejection-3/reward_combined")),
            "gold quality": gain(
                f"{POLICIES}/gatt/gold_quality", "looking", "looking", f"{POLICIES}/rejection-3/gold_quality"),
        },
        shares={
            "followed at turn 20": dialogues("looking", "unseen_after", 20, above=KEPT),
            "followed at turn 20, all instructions": dialogues("looking", "after", 20, above=KEPT),
        },
    ),
)  # fmt: skip
"""What is asked of Ghost Attention beyond the paper."""
TABLE = PAPERS + OURS
