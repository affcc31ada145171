"""Claim B17: a pool of the last round only loses a rare skill that the pool of all rounds keeps (3.2.3, after V3).

    stages='stages=[base, sft, preferences, reward, rejection, evaluate]'
    for seed in 0 1 2; do
      rlhf run seed=$seed run=all-$seed "$stages"
      cp -r runs/all-$seed runs/last-$seed    # base, sft and the first pairs are the same, and are skipped
      rlhf run seed=$seed run=last-$seed "$stages" rejection.pool=last
    done
    python benchmarks/claim_pools.py --all runs/all-* --last runs/last-*

The skill is one that few prompts ask for and that reward models see little of: in the micro-world following an
instruction. It is measured on the last round's policy, by the oracle; the runs of a seed differ in `rejection.pool`
alone.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

SKILLS = ("instruction_followed", "gold_quality")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--all", nargs="+", type=Path, required=True, help="folders of runs with the pool of all rounds"
    )
    parser.add_argument("--last", nargs="+", type=Path, required=True, help="the same seeds with rejection.pool=last")
    options = parser.parse_args()
    both = {seed(run): [run] for run in options.all}
    for run in options.last:
        both.setdefault(seed(run), []).append(run)
    pairs = {number: runs for number, runs in sorted(both.items()) if len(runs) == 2}
    if not pairs:
        raise SystemExit("no two runs have the same seed")
    for skill in SKILLS:
        gains = []
        for number, (kept, lost) in pairs.items():
            a, b = last_round(kept)[skill], last_round(lost)[skill]
            gains.append(a - b)
            print(f"{skill}, seed {number}: all rounds {a:.3f}, last round only {b:.3f}")
        error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
        print(f"{skill}: all minus last {statistics.fmean(gains):+.3f}, standard error {error:.3f}, {len(gains)} seeds")


def seed(run: Path) -> int:
    return int(report(run)["config"]["seed"])


def last_round(run: Path) -> dict[str, float]:
    policies = report(run)["policies"]
    return policies[[name for name in policies if name.startswith("rejection")][-1]]


def report(run: Path) -> dict:
    return json.loads((run / "report.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
