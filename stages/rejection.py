"""Rejection-sampling fine-tuning: the best of K answers by reward, over all rounds, is the next target (3.2.3)."""

import hashlib
import random
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf.data import feed
from rlhf.data import pool as pools
from rlhf.data.pool import PoolEntry
from rlhf.data.types import Dialogue, Prompt, Turn
from rlhf.errors import MissingError, RlhfError
from rlhf.generation.protocol import Sampling
from rlhf.models.gate import check_gate
from rlhf.models.load import load_tokenizer, policy_to_train, save
from rlhf.models.reward_models import RewardModels, Scores
from rlhf.pipeline import Job
from rlhf.rollout import Sample, require_fit, sample, sampler
from rlhf.training.finetune import fine_tune
from rlhf.training.rehearsal import Known, best_pooled, share_to_ratio


def run(job: Job) -> None:
    """Leave `pool.jsonl`, this round's samples with their scores, and `checkpoint/`."""
    config = job.config
    check_gate(job.one("reward"), config, stage="rejection", say=job.track.say)
    newest = job.one("policy") / "checkpoint"
    prompts = training_prompts(job, side="train", count=config.prompts) if config.pool_from is None else []
    tokenizer = load_tokenizer(newest)
    require_fit(newest, prompts, tokenizer, longest=config.max_new_tokens)
    rewards = RewardModels.load(job.one("reward"), job.recipe.model, reads=tokenizer)
    (job.out / "pool.jsonl").unlink(missing_ok=True)  # of a killed try, perhaps with other settings; made anew below
    known = sample_round(job, tokenizer, rewards, prompts) if config.pool_from is None else borrow_round(job)

    pool = [entry for path in [*earlier(job), job.out] for entry in pools.read(path / "pool.jsonl").entries]
    best = best_pooled(pool, tokenizer, rewards, safety_threshold=config.safety_threshold, known=known)
    del known  # of 200,000 answers it weighs gigabytes
    if not best:
        empty = sum(not entry.completion for entry in pool)
        cut = len(pool) - empty
        raise RlhfError(
            f"none of {len(pool):,} samples can be a target: {empty:,} are empty, {cut:,} never ended",
            where=job.name,
            hints=["train the policy longer: sft.epochs"]
            + ["or give answers more room: rejection.max_new_tokens"] * (cut > 0),
        )
    for entry in best[:12]:
        job.track.sample({"round": entry.round, "prompt": entry.prompt[-1].content, "text": entry.completion})
    job.track.log({"pool/entries": len(pool), "pool/prompts": len(best)}, step=0)

    start = job.one("base" if config.start == "base" else "policy") / "checkpoint"
    policy = policy_to_train(start, job.recipe.model)
    fine_tune(policy, tokenizer, mixture(job, best), job)
    save(policy, tokenizer, job.out / "checkpoint")


def sample_round(job: Job, tokenizer, rewards: RewardModels, prompts: list[Prompt]) -> Known:
    """K answers to each of this round's prompts, by the newest policy, into the pool; and their scores."""
    config = job.config
    policy = sampler(job.recipe.generation, job.one("policy") / "checkpoint", job.recipe.model)
    temperature, trial = tune_temperature(job, policy, tokenizer, rewards)
    sampling = Sampling(config.samples_per_prompt, temperature, config.max_new_tokens)
    with job.track.progress(len(prompts), "samples") as bar:
        groups = sample(policy, tokenizer, prompts, sampling, seed=job.seed, advance=bar.advance)
    samples = [s for group in groups for s in group]
    check_ends(job, samples)
    scores = scored(job, rewards, samples)
    pools.append(job.out / "pool.jsonl", entries(job, samples, scores, temperature))
    mean, spread = scores.combined.mean().item(), scores.combined.tolist()
    job.track.say(f"{len(samples):,} samples at temperature {temperature}, mean score {mean:.2f}")
    seen = {"reward/combined": mean, "reward/combined_histogram": spread, "gen/eos_rate": ended(samples)}
    job.track.log(seen, step=0)
    job.write_results({"temperature": temperature, **trial})
    return {(s.prompt.is_safety, s.row): score for s, score in zip(samples, spread, strict=True)}


def borrow_round(job: Job) -> Known:
    """Distillation: this round's samples are those that a larger model drew in the same round of another run.

    What its reward models said of them is not what this run's say.
    """
    source = Path(job.config.pool_from).expanduser() / job.name / "pool.jsonl"
    if not source.is_file():
        raise MissingError(
            f"{source} does not exist",
            where="rejection.pool_from",
            hints=[
                "name the folder of a run that has this round: rejection.pool_from=runs/RUN",
                "or ask for fewer rounds",
            ],
        )
    count = pools.append(job.out / "pool.jsonl", pools.read(source).entries)
    job.track.say(f"{count:,} samples of {source}")
    job.write_results({"pool_from": str(source), "borrowed": count})  # "samples" are rows to show
    return {}


def check_ends(job: Job, samples: list[Sample]) -> None:
    """A policy that never stops gives no targets: say so now, and not by a round that learns from a few odd answers."""
    cut, limit = 1 - ended(samples), job.config.max_truncated
    if cut > limit:
        raise RlhfError(
            f"{cut:.0%} of {len(samples):,} samples never ended within rejection.max_new_tokens"
            f" ({job.config.max_new_tokens}), more than rejection.max_truncated ({limit:.0%})",
            where=job.name,
            hints=[
                "give answers more room: rejection.max_new_tokens",
                "sample cooler: rejection.temperatures",
                "or accept it: rejection.max_truncated=1",
            ],
        )


def ended(samples: list[Sample]) -> float:
    """The share of answers that ended by themselves."""
    return sum(s.finished for s in samples) / len(samples)


def tune_temperature(job, policy, tokenizer, rewards) -> tuple[float, dict[str, Any]]:
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
        samples = [s for group in groups for s in group]
        if not best:  # the coolest: what never ends here ends nowhere
            check_ends(job, samples)
        best[temperature] = scored(job, rewards, samples).combined.view(len(prompts), k).amax(-1)
    chosen = lowest_as_good(best)
    curve = {f"{t:g}": values.mean().item() for t, values in best.items()}
    shown = ", ".join(f"{t}: {value:.2f}" for t, value in curve.items())
    job.track.say(f"best of {k} by temperature {{{shown}}}: {chosen:g}")
    budget = {"prompts": len(prompts), "samples_per_prompt": k, "samples": len(best) * len(prompts) * k}
    return chosen, {"temperature_curve": curve, "temperature_budget": budget}


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
    drawn = feed.asked(job, count, label=f"prompts {side}", side=side)
    return list({pool_id(prompt): prompt for prompt in drawn}.values())


def scored(job, rewards: RewardModels, samples: list[Sample]) -> Scores:
    """The scores of every sample, in logits; not whitened, since only the order within a prompt counts."""
    rows, tags = [s.row for s in samples], [s.prompt.is_safety for s in samples]
    return rewards(rows, tags, safety_threshold=job.config.safety_threshold)


def earlier(job):
    """The pools of earlier rounds: all of them, or with `pool: last` none (the lesson of V3)."""
    return job.every("rejection*") if job.config.pool == "all" else ()


def entries(job, samples: list[Sample], scores: Scores, temperature: float) -> list[PoolEntry]:
    """The samples of a round as rows of the pool, K to a prompt in the order given."""
    policy = job.digest_of("policy")
    k = job.config.samples_per_prompt
    values = zip(scores.helpfulness.tolist(), scores.safety.tolist(), scores.combined.tolist(), strict=True)
    return [
        PoolEntry(
            prompt_id=pool_id(s.prompt),
            prompt=s.prompt.turns,
            is_safety=s.prompt.is_safety,
            completion=s.text,
            scores={"helpfulness": helpful, "safety": safe, "combined": combined},
            round=job.round,
            policy=policy,
            temperature=temperature,
            seed=job.seed,
            k=i % k,
            finished=s.finished,
        )
        for i, (s, (helpful, safe, combined)) in enumerate(zip(samples, values, strict=True))
    ]


def pool_id(prompt: Prompt) -> str:
    """The pool's id of a prompt, the same in every round.

    Unlike `prompt_digest` (rlhf/data/split.py) it heeds letter case and blanks: what a policy answers depends on them.
    """
    return hashlib.sha256("\0".join(f"{t.role}\0{t.content}" for t in prompt.turns).encode()).hexdigest()[:16]


def mixture(job, best: list[PoolEntry]) -> list[Dialogue]:
    """The targets, and a share of the demonstrations."""
    targets = [
        Dialogue(f"pool-{i}", (*e.prompt, Turn("assistant", e.completion)), f"rejection-{e.round}")
        for i, e in enumerate(best)
    ]
    demonstrations = feed.stored(job.one("sft") / "demonstrations.jsonl", Dialogue)
    share = job.config.sft_share
    count = min(len(demonstrations), round(len(targets) * share_to_ratio(share)))
    drawn = random.Random(job.seed).sample(demonstrations, count)
    job.track.say(f"{len(targets):,} best answers and {count:,} demonstrations")
    return targets + drawn
