"""Pairs a second of reward-model training: our trainer against TRL's RewardTrainer, interleaved in one process.

    python benchmarks/bench_reward_training.py                       # every point
    python benchmarks/bench_reward_training.py --points tiny-short,tiny-chat

Random weights and tokens; lengths are log-normal (sigma 0.6), prompts and completions by themselves. "short" is single
questions, "chat" multi-turn dialogues whose common prompt is four fifths of a row. Both trainers get the same model,
pairs, batch size and AdamW, and go once through the pairs; TRL's as its users run it, without grouping by length. What
is timed is `train()`, in process CPU seconds on one thread; a ratio is that of one round. Loss and weights after a step
are compared in tests/training/test_trainers.py.
"""

from __future__ import annotations

import argparse
import copy
import io
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from measure import Table, llama_config, quiet
from rich.console import Console
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer

from rlhf.data.tokenizer import train_tokenizer
from rlhf.resume.preemption import Stop
from rlhf.resume.saves import Saves
from rlhf.schema import AdamW
from rlhf.tracking.track import Tracker
from rlhf.training import trainers
from rlhf.training.trainers import Batching, Pair, Schedule, fit_reward

EOS, SIGMA, RATE = 2, 0.6, 1e-5
NAN = float("nan")


@dataclass(frozen=True)
class Point:
    """One row of the table: model size, mean tokens of prompt and completion, pairs, batch size, ratio aimed at."""

    name: str
    size: str
    prompt: float
    completion: float
    pairs: int
    batch_size: int
    target: float


POINTS = [
    Point("tiny-short", "tiny", 30, 60, 64, 16, 1.0),
    Point("tiny-chat", "tiny", 400, 100, 32, 8, 1.3),
    Point("small-short", "small", 30, 60, 16, 8, 1.0),
    Point("small-chat", "small", 400, 100, 8, 4, 1.3),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", default=",".join(p.name for p in POINTS), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    quiet()
    head = ["model, prompts", "TRL, pairs/s", "ours, pairs/s", "ratio", "aim", "layout", "padding", "prompt share"]
    table = Table("Reward models: training", head)
    for point in POINTS:
        if point.name in options.points.split(","):
            measure(point, options.rounds, table)
    table.show()


def measure(point: Point, rounds: int, table: Table) -> None:
    """Both trainers in turn, after one round that is not counted."""
    torch.manual_seed(0)
    config = llama_config(point.size)
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)
    pairs = pairs_of(point, config.vocab_size)
    tokenizer = train_tokenizer(["a tokenizer that only has to know its pad token"] * 3, vocab_size=300)
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    for number in range(rounds + 1):
        theirs_took = theirs(copy.deepcopy(model), tokenizer, pairs, point, seed=number)
        ours_took, batching = ours(copy.deepcopy(model), tokenizer, pairs, point, seed=number)
        if number:
            seconds["theirs"].append(theirs_took)
            seconds["ours"].append(ours_took)
    prompt = sum(2 * shared_of(pair) for pair in pairs)
    everything = sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
    table.row(
        f"{point.size}, {point.name.partition('-')[2]}",
        [point.pairs / s for s in seconds["theirs"]],
        [point.pairs / s for s in seconds["ours"]],
        [a / b for a, b in zip(seconds["theirs"], seconds["ours"], strict=True)],
        f"{point.target:g}",
        batching.layout,
        f"{batching.padding:.0%}",
        f"{prompt / everything:.0%}",
    )


def theirs(
    model: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    pairs: list[Pair],
    point: Point,
    *,
    seed: int,
) -> float:
    """CPU seconds of TRL's `train()`."""
    rows = [{"chosen_ids": pair.chosen_ids, "rejected_ids": pair.rejected_ids} for pair in pairs]
    optimizer = AdamW()
    with TemporaryDirectory() as folder:
        arguments = RewardConfig(
            output_dir=folder,
            seed=seed,
            per_device_train_batch_size=point.batch_size,
            num_train_epochs=1,
            learning_rate=RATE,
            optim="adamw_torch_fused",
            adam_beta1=optimizer.beta1,
            adam_beta2=optimizer.beta2,
            adam_epsilon=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            max_length=None,
            bf16=False,
            activation_checkpointing=False,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = RewardTrainer(model, arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        start = time.process_time()
        trainer.train()
        return time.process_time() - start


def ours(
    model: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    pairs: list[Pair],
    point: Point,
    *,
    seed: int,
) -> tuple[float, Batching]:
    """CPU seconds of our `train()`, and how the pairs were laid out."""
    took: list[float] = []
    train = trainers._train

    def timed(*arguments: object) -> None:
        start = time.process_time()
        train(*arguments)
        took.append(time.process_time() - start)

    trainers._train = timed
    schedule = Schedule(learning_rate=RATE, final_lr_ratio=0.1, batch_size=point.batch_size, warmup_steps=0)
    options = {"safety_loss_coef": 0.0, "center_coef": 0.0, "seed": seed, "what": "bench"}
    with TemporaryDirectory() as folder, Tracker(Path(folder), run="b", step="b", console=silent()) as track:
        saves = Saves(Path(folder), key="", track=track, every=1e9, stop=Stop(), note=lambda *_, **__: None)
        try:
            batching = fit_reward(model, tokenizer, pairs, schedule, AdamW(), track=track, saves=saves, **options)
        finally:
            trainers._train = train
    return took[0], batching


def silent() -> Console:
    return Console(file=io.StringIO())


def pairs_of(point: Point, vocabulary: int) -> list[Pair]:
    """Pairs of random tokens that begin with the same prompt and end with an EOS."""
    draw = torch.Generator().manual_seed(0)

    def lengths(mean: float) -> list[int]:
        normal = torch.randn(point.pairs, generator=draw) * SIGMA - SIGMA**2 / 2
        return (mean * normal.exp()).long().clamp(4, int(6 * mean)).tolist()

    def words(n: int) -> list[int]:
        return torch.randint(4, vocabulary, (n,), generator=draw).tolist()

    made = []
    for prompt, chosen, rejected in zip(*(lengths(x) for x in (point.prompt, *[point.completion] * 2)), strict=True):
        start = words(prompt)
        made.append(Pair([*start, *words(chosen), EOS], [*start, *words(rejected), EOS], 0.0, NAN, NAN))
    return made


def shared_of(pair: Pair) -> int:
    """Tokens the two rows begin with in common."""
    return next(i for i, (a, b) in enumerate(zip(pair.chosen_ids, pair.rejected_ids, strict=False)) if a != b)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"\n{time.perf_counter() - started:.0f} s")
