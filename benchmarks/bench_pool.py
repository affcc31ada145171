"""The best of 100,000 pooled samples: seconds and peak memory of writing, reading and choosing.

    python benchmarks/bench_pool.py

Five rounds of 1,000 prompts with 20 samples each, one fifth of the prompts asked again every round; answers of about
60 words.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rlhf.data import pool as pools
from rlhf.data.pool import PoolEntry
from rlhf.data.types import Turn

ROUNDS, PROMPTS, K = 5, 1000, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choose", type=Path, help="only read the pools in this folder and choose (used by itself)")
    options = parser.parse_args()
    if options.choose:
        print(json.dumps(choose(options.choose)))
        return
    from measure import Table

    table = Table("Selection from a pool of 100,000 samples", ["", "CPU seconds", "peak memory, MB", "aim"])
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        for number in range(1, ROUNDS + 1):
            pools.append(Path(folder) / f"{number}.jsonl", entries(number, rng))
        table.row("make and write, round by round", [time.process_time() - start], "", "")
        command = [sys.executable, __file__, "--choose", folder]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    table.row("read all rounds and choose", [found["seconds"]], [found["peak"]], "10 s, 500 MB")
    table.note(f"{found['samples']:,} samples of {found['prompts']:,} prompts; memory of a process without torch")
    table.show()


def choose(folder: Path) -> dict[str, float]:
    """What the stage does, but for the reward models: today's scores are the stored ones here."""
    start = time.process_time()
    pool = [entry for path in sorted(folder.iterdir()) for entry in pools.read(path).entries]
    best = pools.best(pool, [entry.scores["combined"] for entry in pool])
    seconds = time.process_time() - start
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return {"seconds": seconds, "peak": peak, "samples": len(pool), "prompts": len(best)}


def entries(number: int, rng: random.Random) -> list[PoolEntry]:
    """A round: the first fifth of its prompts is asked in every round."""
    made = []
    for i in range(PROMPTS):
        name = f"p{i}" if i < PROMPTS // 5 else f"p{number}-{i}"
        prompt = (Turn("user", f"{name} {words(rng, 15)}"),)
        made += [
            PoolEntry(name, prompt, i % 2 == 0, words(rng, 60), {"combined": rng.gauss(0, 1)}, number, "0" * 64, 1.0,
                      number, k, True)
            for k in range(K)
        ]  # fmt: skip
    return made


def words(rng: random.Random, count: int) -> str:
    return " ".join(f"word{rng.randrange(1000)}" for _ in range(count))


if __name__ == "__main__":
    main()
