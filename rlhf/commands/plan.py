"""`rlhf plan`: what `run` would do, why, and what it would cost."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from rlhf.commands.request import Request
from rlhf.commands.text import table
from rlhf.errors import ConfigError
from rlhf.reporting.text import duration

if TYPE_CHECKING:
    from rlhf.costs.hardware import Hardware
    from rlhf.costs.stages import Cost
    from rlhf.planning.steps import Step
    from rlhf.schema import Recipe

LAUNCHES = ("ddp", "fsdp", "zero2", "zero3", "cpu", "cpu-fsdp", "cpu-zero2", "cpu-zero3")
UNITS = {"": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30}


def main(request: Request) -> int:
    """rlhf plan."""
    from rlhf import pipeline

    loaded, hardware = request.load(), hardware_of(request)
    steps = pipeline.select(pipeline.expand(loaded.recipe), request.stage)
    rerun, reuse = "--rerun" in request.flags, "--reuse" in request.flags
    planned = pipeline.plan(steps, loaded.recipe, loaded.run_dir, rerun=rerun, reuse=reuse)
    table([step.name, "run" if decision.run else "skip", decision.reason] for step, decision in planned)
    coming = [step for step, decision in planned if decision.run]
    if coming:
        print()
        costs(coming, loaded.recipe, hardware)
    return 0


def costs(steps: list[Step], recipe: Recipe, hardware: Hardware) -> None:
    """A line for each stage that would run, then what fits, and what all of it comes to."""
    from rlhf.costs.shapes import shape_of
    from rlhf.costs.stages import cost_of

    shape, times = shape_of(recipe.model), Counter(step.stage for step in steps)
    found = {stage: cost_of(stage, recipe, shape, hardware) for stage in times}
    spread = f", {hardware.engine}" if hardware.gpus > 1 else ""
    place = "in one process" if hardware.cpu else "on one GPU"
    print(f"{shape.policy:,} parameters; bytes {place} of {hardware.gpus}{spread}, the work of all")
    heads = ("weights", "gradients", "optimizer", "activations~", "cache", "total", "tokens", "FLOP", "time", "disk")
    table([["", *(head.rjust(9) for head in heads)], *(line(c, times[s], hardware) for s, c in found.items())])
    print(
        f"~ an estimate. Assumed: prompts of {hardware.prompt_tokens} tokens, answers as long as allowed,"
        f" {hardware.rows:,} rows of a set without a limit"
        + (f", {hardware.mfu:.0%} of {hardware.tflops:g} TFLOP/s" if hardware.tflops else "; time: give tflops=")
    )
    if hardware.gpu_memory:
        for stage, cost in found.items():
            if not cost.bytes.total:
                continue
            print(verdict(stage, cost, recipe, hardware))


def line(cost: Cost, times: int, hardware: Hardware) -> list[str]:
    """One row: the bytes of a rank, then the work, of all rounds together."""
    parts = (getattr(cost.bytes, name) for name in ("weights", "gradients", "optimizer", "activations", "cache"))
    seconds = cost.seconds(hardware)
    work = [
        f"{times * cost.tokens:.3g}",
        f"{times * cost.flops:.2e}",
        duration(times * seconds) if seconds is not None else "-",
        size(times * cost.disk),
    ]
    cells = [*map(size, parts), size(cost.bytes.total), *work]
    return [cost.stage + (f" x{times}" if times > 1 else ""), *(cell.rjust(9) for cell in cells)]


def verdict(stage: str, cost: Cost, recipe: Recipe, hardware: Hardware) -> str:
    """Whether a stage fits into one GPU, and the nearest change with which it would."""
    from rlhf.costs.advice import nearest
    from rlhf.costs.shapes import shape_of

    assert hardware.gpu_memory is not None
    have = size(hardware.gpu_memory)
    if cost.bytes.total <= hardware.gpu_memory:
        return f"{stage} fits: {size(cost.bytes.total)} of {have}"
    found = nearest(stage, recipe, shape_of(recipe.model), hardware)
    if found is None:
        return f"{stage} does not fit: {size(cost.bytes.total)} of {have}, and nothing known here would make it"
    words, then = found
    return f"{stage} does not fit: {size(cost.bytes.total)} of {have}; it would with {' '.join(words)}: " + size(
        then.bytes.total
    )


def hardware_of(request: Request) -> Hardware:
    """The machine that the options describe."""
    from rlhf.costs.hardware import Hardware

    given = request.options
    memory, launch = given.get("gpu_memory"), request.option("launch", LAUNCHES)
    return Hardware(
        gpus=int(number(request, "gpus", 1)),
        engine=launch.removeprefix("cpu").removeprefix("-") or "ddp",
        cpu=launch.startswith("cpu"),
        gpu_memory=bytes_of(memory) if memory is not None else None,
        tflops=number(request, "tflops", 0) or None,
        mfu=number(request, "mfu", 0.4),
        prompt_tokens=int(number(request, "prompt_tokens", 512)),
        longest_pair=int(number(request, "longest_pair", 0)) or None,
        rows=int(number(request, "rows", 30_000)),
    )


def number(request: Request, name: str, default: float) -> float:
    """An option that is a number above 0; of a count, a whole one."""
    text = request.options.get(name)
    if text is None:
        return default
    whole = name in ("gpus", "prompt_tokens", "longest_pair", "rows")
    if not re.fullmatch(r"\d+" if whole else r"\d*\.?\d+", text) or float(text) == 0:
        raise ConfigError(
            f"{name} must be a {'whole ' if whole else ''}number above 0 (got {text})",
            where="given on the command line",
        )
    return float(text)


def bytes_of(text: str) -> float:
    """80GB as bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)", text.strip().upper())
    if match is None or match[2] not in UNITS:
        raise ConfigError(f"gpu_memory must be a size such as 80GB (got {text})", where="given on the command line")
    return float(match[1]) * UNITS[match[2]]


def size(count: float) -> str:
    """Bytes as a person reads them: 13.5 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B" if count else "-"
