"""Rejection-sampling fine-tuning: the best of K answers by reward, over all rounds, is the next target (3.2.3)."""

import hashlib
import random

import torch
from torch import Tensor

from rlhf.data import feed
from rlhf.data import pool as pools
from rlhf.data.chat import encode_completion, encode_prompt
from rlhf.data.pool import PoolEntry
from rlhf.data.types import Dialogue, Prompt, Turn
from rlhf.finetune import fine_tune
from rlhf.generation.protocol import Sampling
from rlhf.models.load import load_policy, load_tokenizer, save
from rlhf.models.reward_models import RewardModels
from rlhf.pipeline import Job
from rlhf.rollout import Sample, sample


def run(job: Job) -> None:
    """Leave `pool.jsonl`, this round's samples with their scores, and `checkpoint/`."""
    config = job.config
    start = job.one("policy") / "checkpoint"
    tokenizer = load_tokenizer(start)
    policy = load_policy(start, job.recipe.model)
    rewards = RewardModels.load(job.one("reward"), job.recipe.model)

    temperature, curve = tune_temperature(job, policy, tokenizer, rewards)
    prompts = training_prompts(job, side="train", count=config.prompts)
    sampling = Sampling(config.samples_per_prompt, temperature, config.max_new_tokens)
    with job.track.progress(len(prompts), "samples") as bar:
        groups = sample(policy, tokenizer, prompts, sampling, seed=job.seed, advance=bar.advance)
    samples = [s for group in groups for s in group]
    scores = scored(job, rewards, samples)
    pools.append(job.out / "pool.jsonl", entries(job, samples, scores, temperature))

    pool = [entry for path in [*earlier(job), job.out] for entry in pools.read(path / "pool.jsonl").entries]
    best = [entry for entry in pools.best(pool, rescore(job, rewards, tokenizer, pool)) if usable(entry)]
    for entry in best[:12]:
        job.track.sample({"round": entry.round, "prompt": entry.prompt[-1].content, "text": entry.completion})
    mean = sum(scores) / len(scores)
    job.track.say(f"{len(samples):,} samples at temperature {temperature}, mean score {mean:.2f}")
    job.track.log({"pool/entries": len(pool), "pool/prompts": len(best), "reward/combined": mean}, step=0)
    job.write_results({"temperature": temperature, "temperature_curve": curve})

    start = job.one("base" if config.start == "base" else "policy") / "checkpoint"
    policy = load_policy(start, job.recipe.model)
    fine_tune(policy, tokenizer, mixture(job, best), job)
    save(policy, tokenizer, job.out / "checkpoint")


def tune_temperature(job, policy, tokenizer, rewards) -> tuple[float, dict[str, float]]:
    """The temperature whose best of K scores highest on held-out prompts; it moves from round to round (Fig 8).

    Of temperatures that cannot be told apart, the lowest (ours): hotter samples are further from what the reward models
    were trained on.
    """
    config, k = job.config, job.config.samples_per_prompt
    if len(config.temperatures) == 1:
        return config.temperatures[0], {}
    prompts = training_prompts(job, side="validation", count=config.temperature_prompts)
    best: dict[float, Tensor] = {}  # by temperature, for every prompt the score of its best sample
    for temperature in sorted(config.temperatures):
        sampling = Sampling(k, temperature, config.max_new_tokens)
        groups = sample(policy, tokenizer, prompts, sampling, seed=job.seed_of("temperature"))
        scores = torch.tensor(scored(job, rewards, [s for group in groups for s in group]))
        best[temperature] = scores.view(len(prompts), k).amax(-1)
    chosen = lowest_as_good(best)
    curve = {f"{t:g}": values.mean().item() for t, values in best.items()}
    shown = ", ".join(f"{t}: {value:.2f}" for t, value in curve.items())
    job.track.say(f"best of {k} by temperature {{{shown}}}: {chosen:g}")
    return chosen, curve


def lowest_as_good(best: dict[float, Tensor]) -> float:
    """The lowest key whose values are, prompt by prompt, within one standard error of those of the highest mean."""
    top = max(best, key=lambda t: best[t].mean().item())
    for t in sorted(best):
        gap = best[top] - best[t]
        if gap.mean() <= gap.std() / len(gap) ** 0.5:
            return t
    return top


def training_prompts(job, *, side: feed.Side, count: int) -> list[Prompt]:
    """Prompts of both domains, mixed as the annotators' are; others every round, and none twice in one."""
    world = job.recipe.microworld
    drawn = feed.prompts(
        job.config.data,
        count,
        seed=job.seed_of(f"prompts {side}"),
        stage="rejection",
        world=world,
        mix=feed.both_domains(world),
        side=side,
        say=job.track.say,
    )
    return list({prompt_digest(prompt): prompt for prompt in drawn}.values())


def scored(job, rewards: RewardModels, samples: list[Sample]) -> list[float]:
    """The combined score of every sample, in logits; not whitened, since only the order within a prompt counts."""
    rows, tags = [s.row for s in samples], [s.prompt.is_safety for s in samples]
    return rewards(rows, tags, safety_threshold=job.config.safety_threshold).combined.tolist()


def earlier(job):
    """The pools of earlier rounds: all of them, or with `pool: last` none (the lesson of V3)."""
    return job.every("rejection*") if job.config.pool == "all" else ()


def entries(job, samples: list[Sample], scores: list[float], temperature: float) -> list[PoolEntry]:
    """The samples of a round as rows of the pool, K to a prompt in the order given."""
    policy = job.digest_of("policy")
    k = job.config.samples_per_prompt
    return [
        PoolEntry(
            prompt_id=prompt_digest(s.prompt),
            prompt=s.prompt.turns,
            is_safety=s.prompt.is_safety,
            completion=s.text,
            scores={"combined": value},
            round=job.round,
            policy=policy,
            temperature=temperature,
            seed=job.seed,
            k=i % k,
            finished=s.finished,
        )
        for i, (s, value) in enumerate(zip(samples, scores, strict=True))
    ]


def usable(entry: PoolEntry) -> bool:
    """An answer that is empty or never ended is never a target, not even where a prompt has no other."""
    return entry.finished and bool(entry.completion)


def prompt_digest(prompt: Prompt) -> str:
    """The same question asked in another round is the same prompt to the pool."""
    return hashlib.sha256("\0".join(f"{t.role}\0{t.content}" for t in prompt.turns).encode()).hexdigest()[:16]


def rescore(job, rewards, tokenizer, pool: list[PoolEntry]) -> list[float]:
    """All entries by today's reward models, so that rounds compare. An answer that never ended can't be the target."""
    rows = [encode_prompt(tokenizer, e.prompt) + encode_completion(tokenizer, e.completion) for e in pool]
    tags = [e.is_safety for e in pool]
    combined = rewards(rows, tags, safety_threshold=job.config.safety_threshold).combined.tolist()
    return [value if usable(e) else float("-inf") for e, value in zip(pool, combined, strict=True)]


def mixture(job, best: list[PoolEntry]) -> list[Dialogue]:
    """The targets, and a share of the demonstrations."""
    targets = [
        Dialogue(f"pool-{i}", (*e.prompt, Turn("assistant", e.completion)), f"rejection-{e.round}")
        for i, e in enumerate(best)
    ]
    demonstrations = feed.stored(job.one("sft") / "demonstrations.jsonl", Dialogue)
    share = job.config.sft_share
    count = min(len(demonstrations), round(len(targets) * share / (1 - share))) if share < 1 else len(demonstrations)
    drawn = random.Random(job.seed).sample(demonstrations, count)
    job.track.say(f"{len(targets):,} best answers and {count:,} demonstrations")
    return targets + drawn
