"""Does PPO grow? The stage itself for 2,000 iterations on toy models: memory and open files every 100 iterations.

    python benchmarks/bench_endurance.py                      # about two minutes on one idle core
    python benchmarks/bench_endurance.py --iterations 400

The whole stage runs, with its metrics, alarms, ledger, saves and held-out checks; models, answers and batches are as
small as they can be. Growth is the slope of a line through the resident memory after the first 200 iterations, in which
allocators fill up. Exit status 1 where it is 1 MB per 100 iterations or more, or a file stays open.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_ppo import resident_mb
from measure import Table, quiet, slope
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rlhf.data.tokenizer import train_tokenizer
from rlhf.job import Job, job_of
from rlhf.models.load import save
from rlhf.planning.steps import Step
from rlhf.provenance.meter import Journal
from rlhf.resume.preemption import Stop
from rlhf.schema import Recipe
from rlhf.tracking.track import Tracker
from stages import ppo

EVERY, WARM = 100, 200
MOST = 1.0
"""MB per 100 iterations."""
SETTINGS = {
    "data": [{"name": "microworld"}],
    "batch_size": 4,
    "minibatch_size": 4,
    "max_new_tokens": 4,
    "heldout_prompts": 4,
    "heldout_every": 50,
    "patience": 10**6,
    "max_kl": 1e9,
    "learning_rate": 1e-5,
    "reward_gate": "ignore",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=2000)
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        seen = course(Path(folder), options.iterations)
    table = Table("PPO for a long time", ["iteration", "resident, MB", "open files"])
    for iteration, memory, files in seen:
        table.row(f"{iteration:,}", [memory], str(files))
    settled = [row for row in seen if row[0] >= WARM]
    growth = EVERY * slope([row[0] for row in settled], [row[1] for row in settled])
    opened = max(row[2] for row in settled) - settled[0][2]
    table.note(f"Growth {growth:+.3f} MB per {EVERY} iterations (aim: below {MOST:g}), files {opened:+d}")
    table.show()
    if growth >= MOST or opened > 0:
        sys.exit(1)


def course(folder: Path, iterations: int) -> list[tuple[int, float, int]]:
    """Run the stage; (iteration, resident MB, open files) now and then."""
    seen: list[tuple[int, float, int]] = []
    (folder / "out").mkdir()
    with Tracker(folder / "out", run="toy", step="ppo", console=Console(file=io.StringIO())) as track:
        log = track.log

        def noted(row: Any, *, step: int) -> None:
            log(row, step=step)
            if "objective/kl" in row and step % EVERY == 0:
                seen.append((step, resident_mb(), len(os.listdir("/proc/self/fd"))))

        track.log = noted  # type: ignore[method-assign]
        ppo.run(toy(folder, track, iterations))
    return seen


def toy(folder: Path, track: Tracker, iterations: int) -> Job:
    """The stage's job on a random policy and two random reward models."""
    tokenizer = train_tokenizer(["how do i open the door ? take the key and open the door ."], vocab_size=280)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=192, num_labels=1, **shape, **ids)
    torch.manual_seed(0)
    save(LlamaForCausalLM(config), tokenizer, folder / "gatt" / "checkpoint")
    for domain in ("helpfulness", "safety"):
        save(LlamaForSequenceClassification(config), tokenizer, folder / "reward-1" / "checkpoint" / domain)
    section = {**SETTINGS, "iterations": iterations}
    recipe = Recipe.model_validate({"stages": ["sft"], "model": {"max_length": 192}, "ppo": section})
    step = Step("ppo", "ppo", 0, "stages.ppo")
    made = job_of(step, recipe, folder, folder / "out", track, "key", Journal(folder / "events.jsonl"), Stop())
    made.reads.update({"policy": (folder / "gatt",), "reward": (folder / "reward-1",)})
    return made


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"\n{time.perf_counter() - started:.0f} s")
