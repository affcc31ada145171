"""What `rlhf plan` says of a run on a CPU beside what its steps measured: plan.md says how it is called."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rlhf.config import load
from rlhf.costs.hardware import Hardware
from rlhf.costs.shapes import shape_of
from rlhf.costs.stages import cost_of

PROCESS = "sft"
"""The step whose measurement says what a process holds beside what is planned: libraries, data, freed memory."""


def main(run: str, config: str, prompt_tokens: str, longest_pair: str) -> None:
    recipe = load(config).recipe
    hardware = Hardware(cpu=True, prompt_tokens=int(prompt_tokens), longest_pair=int(longest_pair))
    files = sorted(Path(run).glob("*/manifest.json"), key=lambda file: file.stat().st_mtime)
    measured = {file.parent.name: json.loads(file.read_text(encoding="utf-8"))["peak_rss_mb"] for file in files}
    planned = {
        step: cost_of(step.partition("-")[0], recipe, shape_of(recipe.model), hardware).bytes.total / 2**20
        for step in measured
    }
    beside = measured[PROCESS] - planned[PROCESS]
    print(f"A process holds {beside:,.0f} MiB beside what is planned, by {PROCESS}.\n")
    print("| step | planned, MiB | with the process | peak RSS, MiB | off |\n|---|---:|---:|---:|---:|")
    for step, peak in measured.items():
        whole = planned[step] + beside
        print(f"| {step} | {planned[step]:,.0f} | {whole:,.0f} | {peak:,.0f} | {whole / peak - 1:+.0%} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
