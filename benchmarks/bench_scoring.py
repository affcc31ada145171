"""Scores of whole dialogues: rows of like length together, against a loop over padded batches in the order they come.

    python benchmarks/bench_scoring.py --rounds 3

Lengths are log-normal: a median of 96 tokens, from 16 to 512, as dialogues of one and of many turns are. No two rows
are the same, since scoring equal rows once would flatter us. In the second half eight rows are answers to one prompt,
as in rejection sampling; prompts and answers have a median of 48 tokens.
"""

from __future__ import annotations

import argparse

import torch
from measure import Table, llama_config, quiet, rounds_of
from torch import Tensor
from transformers import LlamaForSequenceClassification

from rlhf.models.score import score

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    quiet()
    table = Table("Reward scores", ["model, rows", "padded loop, rows/s", "ours, rows/s", "ratio", "aim"])
    for size, count, answers in (("tiny", 512, 1), ("small", 128, 1), ("tiny", 512, 8), ("small", 128, 8)):
        config = llama_config(size)
        config.num_labels = 1
        torch.manual_seed(0)
        model = LlamaForSequenceClassification(config).eval()
        rows = rows_of(count, config.vocab_size) if answers == 1 else answers_of(count, answers, config.vocab_size)
        same = torch.allclose(padded_loop(model, rows), score(model, rows, pad_token_id=0), atol=1e-4)
        if not same:
            raise SystemExit("the two do not agree on the scores")
        seconds = rounds_of(
            {
                "loop": lambda _, model=model, rows=rows: padded_loop(model, rows),
                "ours": lambda _, model=model, rows=rows: score(model, rows, pad_token_id=0),
            },
            options.rounds,
        )
        ratios = [a / b for a, b in zip(seconds["loop"], seconds["ours"], strict=True)]
        rates = [[count / s for s in seconds[name]] for name in ("loop", "ours")]
        table.row(f"{size}, {count}" + f", {answers} a prompt" * (answers > 1), *rates, ratios, "1.5")
    table.show()


@torch.no_grad()
def padded_loop(model: LlamaForSequenceClassification, rows: list[list[int]]) -> Tensor:
    """What its users write: batches in order, padded on the right to their longest row, the library's own forward."""
    found = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        width = max(map(len, batch))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch])
        found.append(model(input_ids=ids, attention_mask=mask).logits[:, 0])
    return torch.cat(found)


def rows_of(count: int, vocabulary: int, *, median: int = 96, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = (torch.randn(count, generator=generator) * 0.7).exp().mul(median).round().long().clamp(16, 512).tolist()
    return [torch.randint(4, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def answers_of(count: int, answers: int, vocabulary: int) -> list[list[int]]:
    prompts = rows_of(count // answers, vocabulary, median=48)
    said = rows_of(count, vocabulary, median=48, seed=1)
    return [prompts[i // answers] + answer for i, answer in enumerate(said)]


if __name__ == "__main__":
    main()
