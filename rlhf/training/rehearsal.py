"""The best answers to some prompts, of K sampled now or of all that were pooled, and such answers as rows to train on.

Ghost Attention and context distillation teach a policy one thing; beside it they replay what it knew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.data import feed, pool
from rlhf.data.chat import encode_completion, encode_prompt
from rlhf.data.pool import PoolEntry
from rlhf.data.types import Dialogue, Prompt, Turn
from rlhf.generation.protocol import Engine, Sampling
from rlhf.models.reward_models import RewardModels
from rlhf.pipeline import Job
from rlhf.rollout import Sample, sample


def best_answers(
    policy: PreTrainedModel | Engine,
    tokenizer: PreTrainedTokenizerBase,
    rewards: RewardModels,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    seed: int,
    safety_threshold: float,
    read: Callable[[Sample], Sequence[int]] = lambda s: s.row,
) -> list[Sample]:
    """The best of K answers a prompt by the combined score, finished ones first; `read`: what the models are shown."""
    groups = sample(policy, tokenizer, prompts, sampling, seed=seed)
    flat = [s for group in groups for s in group]
    tags = [s.prompt.is_safety for s in flat]
    scores = rewards([read(s) for s in flat], tags, safety_threshold=safety_threshold).combined.tolist()
    k = sampling.samples_per_prompt
    return [
        max(zip(group, scores[i * k : (i + 1) * k], strict=True), key=preferred)[0] for i, group in enumerate(groups)
    ]


Known = Mapping[tuple[bool, tuple[int, ...]], float]
"""The combined score of answers that were just scored: by whether the prompt is of the safety domain, and the row."""


def best_pooled(
    entries: Sequence[PoolEntry],
    tokenizer: PreTrainedTokenizerBase,
    rewards: RewardModels,
    *,
    safety_threshold: float,
    known: Known | None = None,
) -> list[PoolEntry]:
    """Per prompt the best that can be a target, if any; all are scored by these models, so that rounds compare.

    Args:
        known: what these very models said already, at this threshold.
    """
    prompts = {prompt: encode_prompt(tokenizer, prompt) for prompt in dict.fromkeys(e.prompt for e in entries)}
    rows = [(e.is_safety, (*prompts[e.prompt], *encode_completion(tokenizer, e.completion))) for e in entries]
    scores = dict(known or {})
    if new := sorted({row for row, e in zip(rows, entries, strict=True) if e.usable} - scores.keys()):
        tags, asked = zip(*new, strict=True)
        made = rewards(asked, tags, safety_threshold=safety_threshold).combined.tolist()
        scores |= zip(new, made, strict=True)
    ranked = [scores[row] if e.usable else float("-inf") for row, e in zip(rows, entries, strict=True)]
    return [entry for entry in pool.best(entries, ranked) if entry.usable]


def replay(
    job: Job,
    policy: PreTrainedModel | Engine,
    tokenizer: PreTrainedTokenizerBase,
    rewards: RewardModels,
    sampling: Sampling,
    *,
    count: int,
    prompts: Sequence[Prompt] | None = None,
) -> list[Dialogue]:
    """Best of K answers of the policy itself to single prompts, so that what it knew is not unlearned (ours).

    Args:
        prompts: the first `count` of these are answered; unless given, so many are drawn from the stage's data.
    """
    if not count:
        return []
    prompts = feed.asked(job, count, label="replay") if prompts is None else prompts[:count]
    seed, threshold = job.seed_of("replay"), job.config.safety_threshold
    best = best_answers(policy, tokenizer, rewards, prompts, sampling, seed=seed, safety_threshold=threshold)
    return [
        Dialogue(f"replay-{i}", (*s.prompt.turns, Turn("assistant", s.text)), "replay")
        for i, s in enumerate(best)
        if s.usable
    ]


def share_to_ratio(share: float) -> float:
    """A share of the whole as a multiple of the rest: 0.5 -> 1."""
    return share / (1 - share)


def preferred(scored: tuple[Sample, float]) -> tuple[bool, bool, float]:
    """The order of answers: one that says something and ended comes before any that does not, then by score."""
    s, value = scored
    return bool(s.text), s.finished, value
