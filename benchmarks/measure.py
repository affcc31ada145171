"""What the benchmarks share: models, clocks and tables."""

from __future__ import annotations

import datetime
import logging
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {  # width, SwiGLU width, layers, heads, vocabulary
    "tiny": (128, 352, 4, 4, 2048),
    "middle": (256, 704, 6, 4, 8000),
    "small": (512, 1376, 8, 8, 32000),
}
GEMM = 2048


def quiet() -> None:
    """One thread, no chatter."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # of the libraries measured against
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)


def llama_config(size: str) -> LlamaConfig:
    width, inner, layers, heads, vocabulary = SIZES[size]
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )


def llama(size: str) -> LlamaForCausalLM:
    """A Llama with the weights of its initialisation."""
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(size)).eval()


@cache
def gemm_rate() -> float:
    """Floating-point operations a second of this machine's matrix product, one thread: the physical limit here."""
    x = torch.randn(GEMM, GEMM)
    x @ x
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        x @ x
        best = min(best, time.process_time() - start)
    return 2 * GEMM**3 / best


def rounds_of(work: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each work in each round, all works in turn, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, do in work.items():
            start = time.process_time()
            do(number)
            if number:
                seconds[name].append(time.process_time() - start)
    return seconds


@dataclass
class Table:
    """Markdown, printed at the end: figures are medians, with the range where rounds differ."""

    title: str
    head: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self, *cells: str | Sequence[float]) -> None:
        self.rows.append([cell if isinstance(cell, str) else spread(cell) for cell in cells])
        print("  ".join(self.rows[-1]), flush=True)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def show(self) -> None:
        print(f"\n### {self.title}\n\n| {' | '.join(self.head)} |\n|{'---|' * len(self.head)}")
        for row in self.rows:
            print(f"| {' | '.join(row)} |")
        print("\n" + ". ".join([*self.notes, about()]) + ".")


def spread(values: Sequence[float]) -> str:
    """The median, and the range of the rounds."""
    middle = short(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({short(min(values))} to {short(max(values))})"


def short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the least-squares line."""
    middle = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - middle[0]) * (b - middle[1]) for a, b in zip(x, y, strict=True))
    return rise / sum((a - middle[0]) ** 2 for a in x)


def about() -> str:
    """When and on what."""
    chip = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        chip = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), chip)
    day = datetime.date.today().isoformat()
    return (
        f"{day}, {chip}, one of {os.cpu_count()} cores, torch {torch.__version__}, transformers"
        f" {transformers.__version__}"
    )
