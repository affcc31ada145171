"""The paper's claims that one run can test, each with its figure and what it rests on.

A claim holds or does not by the numbers of this run alone. One that needs seeds, ablations or larger sets than a single
run has is "untestable" here, and says what it would take.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from rlhf.evaluation import reward_claims
from rlhf.evaluation.verdict import Claim, untestable, verdict

STARTS, LOST, KEPT = 0.8, 0.2, 0.95
"""Shares of dialogues that make B28: followed at first, lost by turn 6 without Ghost Attention, kept with it."""


def examine(results: Mapping[str, Any]) -> dict[str, Claim]:
    """report.json's `claims`: {id: {holds, claim, figure, evidence}}."""
    found = {
        **reward_claims.examine(results.get("reward_models", {})),
        "B13": maximum_grows_median_does_not(results),
        "B14": rejection_raises_gold(results),
        "B15": best_temperature_moves(results),
        "B16": left_tail_goes(results),
        "B19": ppo_adds_to_rejection(results),
        "B28": ghost_attention_lasts(results),
        "B17": untestable(
            "a pool of the last round only loses a rare skill that the pool of all rounds keeps",
            "needs a last round of its own: make claims CLAIMS=B17",
        ),
        "B18": untestable(
            "a small model gains from a large one's samples", "needs a small model: make claims CLAIMS=B18"
        ),
        "B21": untestable("a smaller kl_coef ends at higher KL and reward", "needs PPO twice: make claims CLAIMS=B21"),
    }
    return {key: claim for key, claim in sorted(found.items(), key=_number) if claim is not None}


def maximum_grows_median_does_not(results: Mapping[str, Any]) -> Claim | None:
    """B13: the maximum of N grows with N, the median stays (Fig 7)."""
    curve = results.get("best_of", {}).get("sft")
    if not curve:
        return None
    sizes = sorted(curve, key=int)
    top, middle = ([curve[n][key] for n in sizes] for key in ("max", "median"))
    rise, drift = top[-1] - top[0], abs(middle[-1] - middle[0])
    grows = all(a < b for a, b in pairwise(top)) and drift < rise / 2
    figure = f"N=1 to {sizes[-1]}: max {top[0]:.2f} to {top[-1]:.2f}, median {middle[0]:.2f} to {middle[-1]:.2f}"
    evidence = "SFT policy, held-out prompts, T=1; near-tautological: a check of the harness"
    return verdict(grows, "the maximum of N grows, the median stays", figure, evidence)


def best_temperature_moves(results: Mapping[str, Any]) -> Claim | None:
    """B15: more samples want a higher temperature, and so does a policy after RLHF (Fig 8).

    The best of many samples differs little between temperatures, so that after RLHF the highest temperature within 0.02
    of the best is looked at.
    """
    curves = results.get("temperature", {})
    if len(curves) < 2:
        return None
    (first, before), *_, (last, after) = curves.items()
    sizes = sorted(next(iter(after.values())), key=int)
    few, many = sizes[0], sizes[-1]
    cool, hot = (max(after, key=lambda t: after[t][n]) for n in (few, many))
    borne = [
        max((t for t in curve if curve[t][many] >= max(row[many] for row in curve.values()) - 0.02), key=float)
        for curve in (before, after)
    ]
    figure = (
        f"{last}: best at N={few} T={cool}, at N={many} T={hot}; "
        f"highest within 0.02 of the best: {first} T={borne[0]}, {last} T={borne[1]}"
    )
    held = float(cool) < float(hot) and float(borne[0]) < float(borne[1])
    evidence = f"max of N at {len(after)} temperatures, point estimates"
    return verdict(held, "more samples, and RLHF, want a higher temperature", figure, evidence)


def rejection_raises_gold(results: Mapping[str, Any]) -> Claim | None:
    """B14: fine-tuning on the best of K raises gold quality, not only the reward (Fig 11)."""
    return _rises(results, "sft", _last_rejection(results), "rejection sampling raises gold quality over SFT")


def ppo_adds_to_rejection(results: Mapping[str, Any]) -> Claim | None:
    """B19: PPO after rejection sampling improves further, by a judge that was not its reward (Fig 11)."""
    names = list(results.get("policies", {}))
    if "ppo" not in names:
        return None
    before = names[names.index("ppo") - 1]
    return _rises(results, before, "ppo", f"PPO improves on {before}, where it started, by the gold judge")


def left_tail_goes(results: Mapping[str, Any]) -> Claim | None:
    """B16: the tenth percentile of the score rises from SFT on (Fig 20)."""
    policies, last = results.get("policies", {}), _last_rejection(results)
    gain = policies.get(last or "", {}).get("p10_gain", {}).get("sft")
    if gain is None:
        return None
    low, high = gain["interval"]
    before, after = policies["sft"]["reward_p10"], policies[last]["reward_p10"]
    figure = f"10th percentile of the combined score: sft {before:.2f}, {last} {after:.2f}"
    evidence = f"the same {policies[last]['n']} held-out prompts: {gain['difference']:+.2f}"
    return verdict(
        low > 0, "the worst answers disappear", figure, f"{evidence}, 95% interval {low:+.2f} to {high:+.2f}"
    )


def ghost_attention_lasts(results: Mapping[str, Any]) -> Claim | None:
    """B28: without Ghost Attention the instruction is forgotten by turn 6, with it it lasts to turn 20 (Table 30).

    Where the policy before never followed it, or never forgets it, there is nothing to keep: the test is void.
    """
    rates = results.get("multi_turn", {})
    if not rates.get("after") or not rates.get("before"):
        return None
    claim = "Ghost Attention keeps the instruction to the last turn"
    first, *later = sorted(rates["before"], key=int)
    last = max(rates["after"], key=int)
    sixth = next((turn for turn in later if int(turn) >= 6), last)
    before, after = rates["before"], rates["after"][last]
    early = "".join(f"turn {turn} {before[turn]:.2f}, " for turn in later[:1] if int(turn) < int(sixth))
    figure = f"before: turn {first} {before[first]:.2f}, {early}turn {sixth} {before[sixth]:.2f}"
    figure += f"; after: turn {last} {after:.2f}"
    evidence = f"{rates['n']} held-out conversations, greedy"
    if before[first] < STARTS or before[sixth] > LOST:
        void = f"void: before Ghost Attention it has to be >= {STARTS}, then <= {LOST}"
        return untestable(claim, f"{void}; {figure}; {evidence}")
    return verdict(after >= KEPT, claim, figure, f"{evidence}; holds if after is >= {KEPT}")


def _rises(results: Mapping[str, Any], first: str | None, second: str | None, claim: str) -> Claim | None:
    """Gold quality of two policies on the same prompts: it rises if the paired 95% interval of the gain is above 0."""
    policies = results.get("policies", {})
    gain = policies.get(second or "", {}).get("gold_gain", {}).get(first)
    if gain is None:
        return None
    low, high = gain["interval"]
    figure = f"{policies[first]['gold_quality']:.3f} to {policies[second]['gold_quality']:.3f}"
    evidence = f"{first} to {second} on the same {policies[second]['n']} held-out prompts: {gain['mean']:+.3f}"
    return verdict(low > 0, claim, figure, f"{evidence}, 95% interval {low:+.3f} to {high:+.3f}")


def _last_rejection(results: Mapping[str, Any]) -> str | None:
    names = [name for name in results.get("policies", {}) if name.startswith("rejection")]
    return names[-1] if names else None


def _number(item: tuple[str, Any]) -> int:
    return int(item[0][1:])
