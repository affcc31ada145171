"""A million preference lines (about 400 MB): how long checking and preparing them takes, and how much memory.

    python benchmarks/data/bench_pairs.py [LINES] [FOLDER]

The lines are written to FOLDER (the system's temporary folder by default) and deleted afterwards. Each part runs in a
process of its own; memory is its peak above the peak of a process that only imports what the part needs, or, for
training, that does the same with a thousand lines.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = ["the", "door", "key", "house", "open", "take", "bread", "paint", "river", "stone", "light", "garden", "window"]
IMPORTS = "import numpy, rlhf.cli, rlhf.doctor.rows, rlhf.doctor.show, rlhf.commands.check, rlhf.data.feed, rlhf.config"
PEAK = "import resource; print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
CHECK = f"""
import sys
from rlhf.cli import main
code = main(["check", "data", "stage=reward", "config=hh", "runs_dir=" + sys.argv[2],
             "reward.data=[{{name: pairs, path: " + sys.argv[1] + "}}]"])
assert code == 0, code
assert "torch" not in sys.modules
{PEAK}
"""
PREPARE = f"""
import sys
from rlhf.data import feed, mixing
from rlhf.schema import Source
found = feed.preferences([Source(name="pairs", path=sys.argv[1])], test_share=0.1, say=print)["helpfulness"]
order = mixing.random.Random(0).sample(range(len(found.train)), len(found.train) // 10)
assert all(found.train[i].chosen for i in order)  # read in random order, as training does
{PEAK}
"""

TRAIN = f"""
import sys
from pathlib import Path
from types import SimpleNamespace
from transformers import LlamaConfig, LlamaForSequenceClassification
from rlhf.data import feed, formats, mixing
from rlhf.data.spool import Rows, Spool
from rlhf.data.tokenizer import train_tokenizer
from rlhf.models.pair_batches import Pair
from rlhf.resume.preemption import Stop
from rlhf.resume.saves import Saves
from rlhf.schema import AdamW, Recipe, Source
from rlhf.tracking.track import Tracker
from rlhf.training.trainers import Schedule, fit_reward
from stages import reward

class Begun(Exception):
    pass

class Watch(Tracker):
    def ledger(self, *step, **more):
        raise Begun

tokenizer = train_tokenizer(open(sys.argv[1]).readline().split() * 3, vocab_size=320)
recipe = Recipe.model_validate(dict(stages=["sft"], reward=dict(batch_size=512)))
job = SimpleNamespace(config=recipe.reward, recipe=recipe, track=SimpleNamespace(say=print))
parse, given = formats.preference_read_by(tokenizer), [Source(name="pairs", path=sys.argv[1])]
rows = feed.preferences(given, test_share=0.1, say=print, parse=parse)["helpfulness"].train
made = Spool(Pair)
reward.encode(job, tokenizer, rows, "small", made)
pairs = Rows(made, mixing.helpfulness_mix(range(len(made)), (), share=1.0, seed=0).rows)
size = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=1, **size)
model, optimizer = LlamaForSequenceClassification(config), AdamW(microbatch_size=8)
schedule = Schedule(1e-5, final_lr_ratio=0.1, batch_size=512, warmup_steps=5)
with Watch(Path(sys.argv[2]), run="bench", step="reward-1") as track:
    saves = Saves(track.folder, key="", track=track, every=600, stop=Stop(), note=print)
    options = dict(seed=0, track=track, saves=saves, what="helpfulness")
    try:
        fit_reward(model, tokenizer, pairs, schedule, optimizer, safety_loss_coef=0.0, center_coef=0.01, **options)
    except Begun:
        print(f"{{len(pairs):,}} pairs,", (track.folder / "ledger.jsonl").stat().st_size, "bytes of ledger")
{PEAK}
"""


def write(path: Path, lines: int) -> None:
    """Pairs of one prompt each, with ratings, about 400 bytes a line."""
    rng = random.Random(0)
    ratings = ("significantly", "better", "slightly", "negligibly")
    with path.open("w") as file:
        for number in range(lines):
            prompt, chosen, rejected = (" ".join(rng.choices(WORDS, k=count)) for count in (14, 26, 26))
            row = {"id": f"p{number}", "prompt": f"{prompt} {number}", "chosen": chosen, "rejected": rejected}
            file.write(json.dumps(row | {"rating": rng.choice(ratings), "source": "made up"}) + "\n")


def measured(script: str, *arguments: str) -> tuple[str, int, str]:
    """Seconds, peak MB and what was said by a fresh process."""
    began, cpu = time.perf_counter(), cpu_seconds()
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    *said, peak = done.stdout.strip().splitlines()
    seconds = f"{time.perf_counter() - began:.1f} s ({cpu_seconds() - cpu:.1f} s of CPU)"
    return seconds, int(peak.split()[1]), "\n".join(said)


def cpu_seconds() -> float:
    """What finished children have used so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Write, check, prepare, say."""
    lines = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as folder:
        path = Path(folder) / "pairs.jsonl"
        write(path, lines)
        print(f"{lines:,} lines, {path.stat().st_size / 1e6:,.0f} MB")
        _, baseline, _ = measured(f"{IMPORTS}\n{PEAK}")
        print(f"imports alone: {baseline} MB")
        few = Path(folder) / "few.jsonl"
        write(few, 1000)
        _, training, _ = measured(TRAIN, str(few), folder)
        print(f"training's first step on {1000:,} of them: {training} MB")
        parts = (
            ("check data", CHECK, baseline),
            ("prepare, and read a tenth in random order", PREPARE, baseline),
            ("prepare, encode, mix, and train to the end of the first step", TRAIN, training),
        )
        for name, script, baseline in parts:
            seconds, peak, said = measured(script, str(path), folder)
            print(f"{name}: {seconds}, {peak} MB, {peak - baseline} MB above the imports")
            print("    " + said.splitlines()[-1])


if __name__ == "__main__":
    main()
