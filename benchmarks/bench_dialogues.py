"""Dialogues turn by turn: our engine with what it has read before, and without, against transformers' own generate.

    python benchmarks/bench_dialogues.py
    python benchmarks/bench_dialogues.py --points tiny-64 --rounds 3

Random weights. A first prompt of 32 to 128 tokens, then 8 to 24 new ones a turn after each answer, which ends at random
after about 11 tokens on average; twenty turns. All three hold dialogues from the same model at temperature 1. A ratio
is that of one round, with the same users and another seed than the last. One thread and process CPU seconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from bench_generation import EOS, ending, prompts_of, theirs
from bench_generation import Point as Sizes
from measure import Table, llama, quiet, rounds_of
from transformers import LlamaForCausalLM

from rlhf.generation.protocol import Request, Sampling
from rlhf.generation.transformers import InProcess

POINTS = {"tiny-64": ("tiny", 64), "small-16": ("small", 16)}
TURNS, LONGEST = 20, 28

Answers = Sequence[Sequence[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", default=",".join(POINTS), help="comma-separated, size-dialogues")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    quiet()
    table = Table(
        f"Dialogues of {TURNS} turns",
        ["model, dialogues", "generate, s", "ours, read anew, s", "ours, s", "generate / ours", "read anew / ours"],
    )
    for name in options.points.split(","):
        size, count = POINTS[name]
        measure(size, count, options.rounds, table)
    table.show()


def measure(size: str, count: int, rounds: int, table: Table) -> None:
    """All three in turn, once each round, after one round of two dialogues that is not counted."""
    model = ending(llama(size), mean=0.4 * LONGEST, longest=LONGEST)
    point = Sizes(size, count, 1, LONGEST, 0)

    def by_generate(prompts: list[list[int]], seed: int) -> Answers:
        width = max(map(len, prompts))
        rows = theirs(model, prompts, point, seed)[:, width:].tolist()
        return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]

    def by(engine: InProcess) -> Callable[[list[list[int]], int], Answers]:
        def answers(prompts: list[list[int]], seed: int) -> Answers:
            keys = [str(i) for i in range(len(prompts))]
            found = engine.generate(Request(prompts, keys, Sampling(1, 1.0, LONGEST), seed, EOS))
            return [group[0].token_ids for group in found]

        return answers

    seconds = rounds_of(
        {
            "generate": lambda seed: hold(model, by_generate, count if seed else 2, seed),
            "anew": lambda seed: hold(model, by(InProcess(model)), count if seed else 2, seed),
            "ours": lambda seed: hold(model, by(InProcess(model).remembering()), count if seed else 2, seed),
        },
        rounds,
    )
    generated, anew = (
        [slow / fast for slow, fast in zip(seconds[name], seconds["ours"], strict=True)]
        for name in ("generate", "anew")
    )
    table.row(f"{size}, {count}", seconds["generate"], seconds["anew"], seconds["ours"], generated, anew)


def hold(model: LlamaForCausalLM, answers: Callable[[list[list[int]], int], Answers], count: int, seed: int) -> None:
    """Dialogues of `count` users, who say the same whatever they are answered."""
    dialogues, drawn = prompts_of(count, model.config.vocab_size), torch.Generator().manual_seed(1)
    for turn in range(TURNS):
        for dialogue, answer in zip(dialogues, answers(dialogues, TURNS * seed + turn), strict=True):
            said = torch.randint(8, 25, (1,), generator=drawn).item()
            dialogue += [*answer, *torch.randint(4, model.config.vocab_size, (int(said),), generator=drawn).tolist()]


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"\n{time.perf_counter() - started:.0f} s")
