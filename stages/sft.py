"""Supervised fine-tuning: imitate demonstrations, with loss on answers only (3.1)."""

from rlhf.data import feed
from rlhf.data.types import write_jsonl
from rlhf.models.load import load_tokenizer, policy_to_train, save
from rlhf.pipeline import Job
from rlhf.training.finetune import fine_tune


def run(job: Job) -> None:
    """Leave `checkpoint/`, and the demonstrations, from which later rounds take a share."""
    # Data first: a bad row is said before any model is loaded.
    dialogues = feed.demonstrations(
        job.config.data,
        seed=job.seed,
        stage="sft",
        world=job.recipe.microworld,
        test_share=job.recipe.data.test_share,
        say=job.track.say,
    )
    write_jsonl(job.out / "demonstrations.jsonl", dialogues)
    start = job.one("base") / "checkpoint"
    tokenizer = load_tokenizer(start)
    policy = policy_to_train(start, job.recipe.model)
    fine_tune(policy, tokenizer, dialogues, job)
    save(policy, tokenizer, job.out / "checkpoint")
