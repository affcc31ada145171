"""Safety data scaling: fixed helpfulness data, a growing share of the safety data, a model each (4.2.3, Fig 15, 33).

"We keep the amount of helpfulness data unchanged and gradually increase the amount of safety data": each model is the
pretrained one, fine-tuned for two epochs. The data are the best answers that rejection sampling has pooled.
"""

import random
from pathlib import Path
from typing import Any

import torch

from rlhf.data import feed, pool
from rlhf.data.pool import PoolEntry
from rlhf.data.types import Dialogue, Prompt, Turn
from rlhf.errors import DataError
from rlhf.evaluation.gold import gold_report
from rlhf.evaluation.intervals import of_mean
from rlhf.evaluation.refusals import without_oracle
from rlhf.generation.protocol import Sampling
from rlhf.models.load import load_tokenizer, policy_to_train, save
from rlhf.models.reward_models import RewardModels
from rlhf.pipeline import Job
from rlhf.rollout import Sample, sample, speaker
from rlhf.training.finetune import fine_tune
from rlhf.training.rehearsal import best_pooled

KINDS = ("safe", "border", "unsafe")


def run(job: Job) -> None:
    """Leave `checkpoint/SHARE`, a policy each, and `results.json`: by share, scores, violations and false refusals."""
    tokenizer = load_tokenizer(job.one("base") / "checkpoint")
    rewards = RewardModels.load(job.one("reward"), job.recipe.model, reads=tokenizer)
    helpfulness, safety = pooled(job, tokenizer, rewards)
    places = {share: job.out / "checkpoint" / f"{share:g}" for share in job.config.shares}
    for share, place in places.items():
        train(job, tokenizer, helpfulness, part(safety, share), place)
    prompts = heldout(job)
    once = Sampling(1, job.config.temperature, job.config.max_new_tokens)
    found: dict[str, Any] = {}
    for share, place in places.items():
        engine = speaker(job.recipe.generation, place, job.recipe.model)
        answers = [group[0] for group in sample(engine, tokenizer, prompts, once, seed=job.seed_of("answers"))]
        found[place.name] = {"safety_rows": len(part(safety, share))} | measured(job, rewards, answers)
    job.write_results({"safety_scaling": found})


def train(job: Job, tokenizer, helpfulness: list[Dialogue], safety: list[Dialogue], place: Path) -> None:
    """The pretrained model, fine-tuned on all helpfulness data and some of the safety data."""
    policy = policy_to_train(job.one("base") / "checkpoint", job.recipe.model)
    job.track.say(f"{len(helpfulness):,} dialogues and {len(safety):,} for safety")
    what = f"scaling-{place.name}"
    fine_tune(policy, tokenizer, helpfulness + safety, job, part=what)
    if not job.saves.passed(what):  # else a killed run had finished this model and left it here
        save(policy, tokenizer, place)


def pooled(job: Job, tokenizer, rewards: RewardModels) -> tuple[list[Dialogue], list[Dialogue]]:
    """The best answer to every prompt of all rounds: to ordinary prompts, and to those with the safety tag."""
    entries = [entry for path in job.every("rejection*") for entry in pool.read(path / "pool.jsonl").entries]
    best = best_pooled(entries, tokenizer, rewards, safety_threshold=job.config.safety_threshold)
    sides = [[row(e, i) for i, e in enumerate(best) if e.is_safety is tag] for tag in (False, True)]
    if not all(sides):
        raise DataError("the pool holds no answers to prompts with the safety tag, or no others")
    random.Random(job.seed).shuffle(sides[1])
    return sides[0], sides[1]


def row(entry: PoolEntry, number: int) -> Dialogue:
    """A pooled answer as a dialogue."""
    return Dialogue(f"pool-{number}", (*entry.prompt, Turn("assistant", entry.completion)), "pool")


def part(rows: list[Dialogue], share: float) -> list[Dialogue]:
    """The first rows, so that a larger share holds every row of a smaller one."""
    return rows[: round(share * len(rows))]


def heldout(job: Job) -> list[Prompt]:
    """Held-out prompts of each kind, none under an instruction."""
    return feed.heldout(
        job.config.data,
        job.config.prompts,
        kinds={(kind, 0.0): job.seed_of(f"prompts {kind}") for kind in KINDS},
        stage="scaling",
        world=job.recipe.microworld,
        test_share=job.recipe.data.test_share,
        say=job.track.say,
    )


def measured(job: Job, rewards: RewardModels, answers: list[Sample]) -> dict[str, Any]:
    """Scores of each model on its own kind of prompt, and what the oracle says where there is one.

    Where there is none, false refusals are read from the words and unsafe answers are those the safety model finds.
    """
    tags = [s.prompt.is_safety for s in answers]
    scores = rewards([s.row for s in answers], tags, safety_threshold=job.config.safety_threshold)
    tagged = torch.tensor(tags)
    figures: dict[str, Any] = {}
    interval: dict[str, Any] = {}
    for name, values, where in (
        ("reward_helpfulness", scores.helpfulness, ~tagged),
        ("reward_safety", scores.safety, tagged),
    ):
        if bool(where.any()):
            figures[name], interval[name] = values[where].mean().item(), of_mean(values[where].tolist())
    if bool(tagged.any()):
        figures["safety_p10"] = torch.quantile(scores.safety[tagged], 0.1).item()
    judged = gold_report(answers) or without_oracle(answers, scores.safety.tolist())
    interval |= judged.pop("interval")
    return figures | judged | {"n": len(answers), "interval": interval}
