"""`rlhf audit`: which samples were trained on how often, and whether that was the plan."""

from __future__ import annotations

from rlhf.commands.request import Request
from rlhf.commands.text import table

SHOWN = 5


def main(request: Request) -> int:
    """rlhf audit."""
    from rlhf import pipeline
    from rlhf.checkpoint import shown, verify
    from rlhf.errors import MissingError
    from rlhf.provenance import audit

    loaded = request.load()
    steps = pipeline.select(pipeline.expand(loaded.recipe), request.stage)
    rows, faulty = [], []
    for step in steps:
        ledger = loaded.run_dir / step.name / "ledger.jsonl"
        if not ledger.exists():
            continue
        verify(ledger.parent)
        for part in audit.read(ledger):
            faults = list(part.faults())
            faulty += [f"{step.name}, {part.name}: {fault}" for fault in faults]
            epochs = f"{part.epochs_made} of {part.epochs}" if part.epochs_made != part.epochs else str(part.epochs)
            verdict = "as planned" if not faults else f"{len(faults)} faults"
            if not faults and part.draws == len(part.ids):
                verdict = "each sample exactly once per epoch"
            sizes = [f"{len(part.ids):,}", f"{part.draws:,}", epochs, f"{len(part.steps):,}"]
            rows.append([step.name, part.name, *sizes, verdict])
    if not rows:
        raise MissingError(
            f"no finished step in {shown(loaded.run_dir)} has a ledger", hints=["make one: rlhf run stage=sft"]
        )
    table([["step", "part", "samples", "per epoch", "epochs", "optimizer steps", "verdict"], *rows])
    for fault in faulty[:SHOWN]:
        print(fault)
    if faulty[SHOWN:]:
        print(f"and {len(faulty) - SHOWN} more")
    return 1 if faulty else 0
