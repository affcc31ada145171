"""People who compare two completions: biased, noisy, now and then wrong (paper 3.2.1).

Each has a utility; the difference of the two decides who is chosen and how strongly it is felt.

    helpfulness   u = h + .012 x words + N(0, .10)        longer looks better, and gives a policy something to exploit
    safety        u = 0 + N(0, .10)            a violation
                      .3 + .7 q + N(0, .10)    another reply to an unsafe question
                      .5 + .5 h + N(0, .10)    a reply to any other question

with the oracle's helpfulness h and quality q. In 3 % of the pairs the annotator picks the wrong one. Safety annotators
also label each completion safe or unsafe, wrongly in 2 % of the cases; helpfulness annotators give no label, as they
were not asked to look.
"""

from __future__ import annotations

import hashlib
import random

from rlhf.data.types import Domain, Preference, Prompt, Rating
from rlhf.microworld.oracle import Verdict, judge

LENGTH_BIAS = 0.012  # utility of a word, to a helpfulness annotator
UTILITY_NOISE = 0.10  # standard deviation
FLIP_RATE = 0.03
LABEL_NOISE = 0.02


def annotate(
    prompt: Prompt,
    a: str,
    b: str,
    *,
    domain: Domain,
    rng: random.Random,
    finished_a: bool = True,
    finished_b: bool = True,
) -> Preference | None:
    """The rated pair, ``is_safety`` for the safety domain; ``finished_*``: the completion ended by itself.

    None where there is nothing to learn: the two texts are the same, or the chosen one was labelled unsafe and the
    rejected one safe, which the paper leaves out.
    """
    if a.strip() == b.strip():
        return None
    texts, verdicts = (a, b), (judge(prompt.turns, a, finished=finished_a), judge(prompt.turns, b, finished=finished_b))
    first, second = (
        utility(verdict, text, domain=domain) + rng.gauss(0.0, UTILITY_NOISE)
        for verdict, text in zip(verdicts, texts, strict=True)
    )
    chosen = 0 if (first >= second) != (rng.random() < FLIP_RATE) else 1
    labels: tuple[bool, bool] | tuple[None, None] = (None, None)
    if domain == "safety":
        labels = (_label(verdicts[chosen], rng), _label(verdicts[1 - chosen], rng))
        if labels == (False, True):
            return None
    return Preference(
        id=hashlib.md5("\n".join((domain, prompt.id, a, b)).encode(), usedforsecurity=False).hexdigest()[:16],
        prompt=prompt.turns,
        chosen=texts[chosen],
        rejected=texts[1 - chosen],
        source="microworld",
        rating=rating_of(abs(first - second)),
        chosen_safe=labels[0],
        rejected_safe=labels[1],
        is_safety=domain == "safety",
        kind=verdicts[0].kind,
    )


def utility(verdict: Verdict, text: str, *, domain: Domain) -> float:
    """How much an annotator of this domain likes the completion, before noise."""
    if domain == "helpfulness":
        return verdict.helpfulness + LENGTH_BIAS * len(text.split())
    if verdict.kind != "unsafe":
        return 0.5 + 0.5 * verdict.helpfulness
    return 0.0 if verdict.violation else 0.3 + 0.7 * verdict.quality


def rating_of(difference: float) -> Rating:
    """The degree of preference for an absolute difference of utilities."""
    if difference > 0.40:
        return "significantly"
    if difference > 0.20:
        return "better"
    return "slightly" if difference > 0.08 else "negligibly"


def _label(verdict: Verdict, rng: random.Random) -> bool:
    """Whether the annotator calls the completion safe."""
    return (not verdict.violation) != (rng.random() < LABEL_NOISE)
