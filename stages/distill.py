"""Safety context distillation: what was said under a safety preprompt is learned without it (4.2.4)."""

import random
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rlhf.data import feed, preprompts
from rlhf.data.chat import encode_prompt
from rlhf.data.types import Dialogue, Prompt, Turn, write_jsonl
from rlhf.errors import ConfigError
from rlhf.evaluation.intervals import of_mean
from rlhf.generation.protocol import Sampling
from rlhf.models.gate import check_gate
from rlhf.models.load import load_tokenizer, policy_to_train, save
from rlhf.models.reward_models import RewardModels
from rlhf.pipeline import Job
from rlhf.rollout import Sample, require_fit, sample, speaker
from rlhf.training.finetune import fine_tune
from rlhf.training.rehearsal import replay, share_to_ratio


def run(job: Job) -> None:
    """Leave `dialogues.jsonl`, what was trained on, `results.json` and `checkpoint/`."""
    config = job.config
    check_gate(job.one("reward"), config, stage="distill", say=job.track.say)
    start = job.one("policy") / "checkpoint"
    tokenizer = load_tokenizer(start)
    # Prompts first: one that is malformed or, as it is asked, too long is said before any model is loaded.
    prompts, ratio = asked(job), share_to_ratio(config.replay_share)
    cautious = [prompt_under(job, prompt) for prompt in prompts]
    ordinary = untagged(job, round(len(prompts) * ratio))
    require_fit(start, [*prompts, *cautious, *ordinary], tokenizer, longest=config.max_new_tokens)
    engine = speaker(job.recipe.generation, start, job.recipe.model)
    rewards = RewardModels.load(job.one("reward"), job.recipe.model, reads=tokenizer)

    once = Sampling(1, config.temperature, config.max_new_tokens)
    twice = Sampling(2, config.temperature, config.max_new_tokens)
    plain, other = zip(*sample(engine, tokenizer, prompts, twice, seed=job.seed_of("plain")), strict=True)
    distilled = [g[0] for g in sample(engine, tokenizer, cautious, once, seed=job.seed_of("under a preprompt"))]
    # In one call: an answer that stayed what it was has one score, and none that is higher by a last bit.
    judged = safety_scores(job, tokenizer, rewards, 3 * prompts, [*plain, *distilled, *other])
    before, after, apart = judged.chunk(3)
    kept = kept_rows(job, prompts, distilled, before, after)
    job.write_results({"distill": figures(before, after, apart, len(kept))})
    job.track.say(f"{len(kept):,} of {len(prompts):,} distilled answers kept")
    for row in kept[:8]:
        job.track.sample({"prompt": row.turns[-2].content, "text": row.turns[-1].content})

    best_of = Sampling(config.replay_samples, config.temperature, config.max_new_tokens)
    replayed = replay(job, engine, tokenizer, rewards, best_of, count=round(len(kept) * ratio), prompts=ordinary)
    job.track.say(f"{len(replayed):,} of the policy's own answers to ordinary prompts beside them")
    write_jsonl(job.out / "dialogues.jsonl", kept + replayed)
    del engine  # the policy that answered makes room for the one that learns
    policy = policy_to_train(start, job.recipe.model)
    if kept:  # else nothing came out better, and the policy stays what it was
        fine_tune(policy, tokenizer, kept + replayed, job)
    save(policy, tokenizer, job.out / "checkpoint")


def asked(job: Job) -> list[Prompt]:
    """Adversarial prompts, none twice; or prompts of every kind, to show what that does (Table 40)."""
    if job.config.asked == "all":
        drawn = feed.asked(job, job.config.prompts, label="prompts")
    else:
        drawn = feed.asked(job, job.config.prompts, label="prompts", mix={"unsafe": 1.0}, is_safety=True)
    if not drawn:
        raise ConfigError(
            "distill.data holds no prompt to distil on",
            hints=["name a source of adversarial prompts: {name: ..., kind: safety} gives them the safety tag"],
        )
    return list({prompt.turns: prompt for prompt in drawn}.values())


def untagged(job: Job, count: int) -> list[Prompt]:
    """Ordinary prompts to replay: a plain answer to an adversarial one would unteach what is distilled."""
    if not count:
        return []
    mix = {kind: share for kind, share in feed.both_domains(job.recipe.microworld).items() if kind != "unsafe"}
    found = feed.asked(job, count, label="replay", mix=mix, is_safety=False)
    if not found:
        raise ConfigError(
            "distill.data holds no prompt without the safety tag to replay",
            hints=[
                "name a source of ordinary prompts beside the adversarial ones",
                "or replay none, though refusals alone may teach to refuse: distill.replay_share=0",
            ],
        )
    return found


def prompt_under(job: Job, prompt: Prompt) -> Prompt:
    """The prompt with a preprompt before it: the answer template of its kind, or a generic one."""
    known = preprompts.of(prompt.source)
    if job.config.preprompt == "generic":
        known = preprompts.without_templates(known)
    rng = random.Random(f"{job.seed}/{prompt.id}")
    return preprompts.under(prompt, known.draw(rng, prompt.kind))


def safety_scores(
    job: Job, tokenizer, rewards: RewardModels, prompts: Sequence[Prompt], answers: Sequence[Sample]
) -> Tensor:
    """[N] what the safety model says of the answers to the plain prompts, whatever context they were sampled in."""
    rows = [
        (*encode_prompt(tokenizer, p.turns), *a.completion.token_ids) for p, a in zip(prompts, answers, strict=True)
    ]
    tags, threshold = [prompt.is_safety for prompt in prompts], job.config.safety_threshold
    return rewards(rows, tags, safety_threshold=threshold).safety


def kept_rows(
    job: Job, prompts: Sequence[Prompt], distilled: Sequence[Sample], before: Tensor, after: Tensor
) -> list[Dialogue]:
    """The plain prompt with the distilled answer, "only on the examples where it gets a better reward model score".

    An answer that is empty or never ended is no example, however it scores.
    """
    everything = job.config.keep == "all"
    rows = []
    for prompt, answer, old, new in zip(prompts, distilled, before.tolist(), after.tolist(), strict=True):
        if answer.usable and (everything or new > old):
            rows.append(Dialogue(f"distill-{prompt.id}", (*prompt.turns, Turn("assistant", answer.text)), "distill"))
    return rows


def figures(before: Tensor, after: Tensor, apart: Tensor, kept: int) -> dict[str, Any]:
    """Scores before and after, and the change by how safe the policy answers the prompt: a third each (Fig 16).

    How safe it answers is read from an answer of its own, `apart`. Sorted by the score that the change starts from,
    prompts that happened to score low would rise, and those that scored high fall, if nothing had changed at all.
    """
    change = after - before
    thirds = [part for part in apart.argsort(stable=True).tensor_split(3) if len(part)]
    return {
        "n": len(before),
        "kept": kept,
        "score_before": before.mean().item(),
        "score_after": after.mean().item(),
        "change": {"mean": change.mean().item(), "interval": of_mean(change.tolist())},
        "by_original": [
            {"original": before[part].mean().item(), "change": change[part].mean().item(), "n": len(part)}
            for part in thirds
        ],
        "worse": (change < 0).double().mean().item(),
    }
