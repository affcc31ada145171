"""K samples a prompt: our engine against transformers' own generate, interleaved in one process.

    python benchmarks/bench_generation.py                          # every point; about half an hour on one core
    python benchmarks/bench_generation.py --points tiny-64-8 --rounds 3

Random weights, prompts of 32 to 128 tokens, answers that end at random (geometric, about 40% of the longest on
average). Both engines sample from the same model at temperature 1 until every row has ended. A ratio is that of one
round, with the same prompts and another seed than the last; medians and ranges are over rounds. One thread and process
CPU seconds, so that other work on the machine hardly counts.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import torch
from measure import GEMM, Table, gemm_rate, llama, quiet, rounds_of
from torch import Tensor
from transformers import LlamaForCausalLM

from rlhf.generation.protocol import Request, Sampling
from rlhf.generation.transformers import generate

EOS, PAD = 2, 0


@dataclass(frozen=True)
class Point:
    """One row of the table: model size, rows in all, samples a prompt, longest answer, and the ratio aimed at."""

    size: str
    rows: int
    k: int
    longest: int
    target: float

    @property
    def name(self) -> str:
        return f"{self.size}-{self.rows}-{self.k}"


POINTS = [
    Point("tiny", 16, 4, 128, 1.5),
    Point("tiny", 64, 8, 128, 2.5),
    Point("tiny", 256, 16, 128, 1.5),
    Point("small", 16, 4, 64, 1.5),
    Point("small", 64, 8, 64, 4.0),
    Point("small", 256, 8, 64, 7.0),
    Point("small", 256, 16, 64, 1.5),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", default=",".join(p.name for p in POINTS), help="comma-separated, size-rows-k")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    quiet()
    chosen = [p for p in POINTS if p.name in options.points.split(",")]
    head = [
        "model, rows, K, longest",
        "generate, samples/s",
        "ours, samples/s",
        "ratio",
        "aim",
        "tokens/s",
        "of GEMM rate",
    ]
    table = Table("Generation: K samples a prompt", head)
    for point in chosen:
        measure(point, options.rounds, table)
    table.note(f"GEMM rate of one thread: {gemm_rate() / 1e9:.0f} GFLOP/s (float32, {GEMM} x {GEMM})")
    table.show()


def measure(point: Point, rounds: int, table: Table) -> None:
    """Both engines in turn, once each round, after one round of two prompts that is not counted."""
    model = ending(llama(point.size), mean=0.4 * point.longest, longest=point.longest)
    prompts = prompts_of(point.rows // point.k, model.config.vocab_size)
    made: list[int] = []  # tokens of each of our rounds
    seconds = rounds_of(
        {
            "generate": lambda seed: theirs(model, prompts if seed else prompts[:2], point, seed),
            "ours": lambda seed: made.append(ours(model, prompts if seed else prompts[:2], point, seed)),
        },
        rounds,
    )
    rates = {name: [point.rows / s for s in values] for name, values in seconds.items()}
    ratios = [theirs / ours for theirs, ours in zip(seconds["generate"], seconds["ours"], strict=True)]
    tokens = [n / s for n, s in zip(made[1:], seconds["ours"], strict=True)]
    share = [t * flops_of_token(model) / gemm_rate() for t in tokens]
    table.row(
        f"{point.size}, {point.rows}, {point.k}, {point.longest}",
        rates["generate"],
        rates["ours"],
        ratios,
        f"{point.target:g}",
        tokens,
        [100 * s for s in share],
    )


def theirs(model: LlamaForCausalLM, prompts: list[list[int]], point: Point, seed: int) -> Tensor:
    """What its users write: prompts padded on the left, K copies of each, until the last row has ended."""
    torch.manual_seed(seed)
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        num_return_sequences=point.k,
        max_new_tokens=point.longest,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )


def ours(model: LlamaForCausalLM, prompts: list[list[int]], point: Point, seed: int) -> int:
    """The same samples with their log-probabilities; how many tokens they have."""
    keys = [str(i) for i in range(len(prompts))]
    found = generate(model, Request(prompts, keys, Sampling(point.k, 1.0, point.longest), seed, EOS))
    return sum(len(c.token_ids) for group in found for c in group)


def ending(model: LlamaForCausalLM, *, mean: float, longest: int) -> LlamaForCausalLM:
    """Give the head a bias at the EOS, so that answers have about `mean` tokens when cut at `longest`."""
    low, high = 1e-4, 1.0
    for _ in range(60):  # (1 - (1 - p)^T) / p falls with p
        p = (low * high) ** 0.5
        low, high = (p, high) if (1 - (1 - p) ** longest) / p > mean else (low, p)
    old = model.lm_head
    head = torch.nn.Linear(old.in_features, old.out_features)
    with torch.no_grad():
        head.weight.copy_(old.weight)
        head.weight[EOS] = 0
        head.bias.zero_()
        spread = old.weight.var().item() * old.in_features  # of the logits, whose inputs have unit variance
        head.bias[EOS] = torch.tensor(p / (1 - p) * old.out_features).log() + spread / 2
    model.lm_head = head
    return model


def prompts_of(count: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(32, 129, (count,), generator=generator).tolist()
    return [torch.randint(4, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def flops_of_token(model: LlamaForCausalLM) -> float:
    """Two a weight that is multiplied with; prompts and attention are left out, so shares are a little too low."""
    return 2.0 * sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embed_tokens" not in name)


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"\n{time.perf_counter() - started:.0f} s")
