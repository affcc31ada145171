"""Whole steps of the small recipe of tests/lives.py, killed or poisoned, against an undisturbed run of it."""

from __future__ import annotations

import random
import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import lives
import nodes
import torch
from measure import short
from record import record
from safetensors.torch import load_file

# What runs in the child before the step: from a call on, what a function returns is spoilt.
POISON = """
import importlib
import torch
owner = importlib.import_module("{module}")
*path, name = "{function}".split(".")
for part in path:
    owner = getattr(owner, part)
real, calls = getattr(owner, name), []
def spoilt(made):
    if isinstance(made, tuple):
        return tuple(spoilt(part) if i == {part} else part for i, part in enumerate(made))
    if {gradient}:
        made.register_hook(lambda gradient: gradient * float("nan"))
        return made
    if isinstance(made, torch.nn.Module):
        with torch.no_grad():
            next(p for p in made.parameters() if p.ndim == 1)[0] = float("nan")
        return made
    return made * float("nan")
def poisoned(*arguments, **more):
    calls.append(1)
    made = real(*arguments, **more)
    return spoilt(made) if len(calls) >= {call} else made
setattr(owner, name, poisoned)
"""


class Place(NamedTuple):
    """What is spoilt, from which of its calls on; where it returns several things, which of them."""

    step: str
    function: str
    call: int = 3
    part: int = 0


TUNED = ("base", "sft", "rejection-2", "distill", "gatt", "scaling")
LOSS = [
    *(Place(step, "rlhf.training.row_trainer:RowTrainer.compute_loss", 2) for step in TUNED),
    Place("reward-2", "rlhf.training.trainers:ranking_loss"),
    Place("ppo", "stages.ppo:policy_loss"),
    Place("ppo", "stages.ppo:value_loss"),
]
LOADED = ("sft", "preferences-2", "reward-2", "rejection-2", "distill", "gatt", "ppo", "scaling", "evaluate")
SCORED = ("rejection-2", "distill", "gatt", "ppo", "scaling", "evaluate")
PLACES = {
    "loss": LOSS,
    "gradient": LOSS,
    "weights": [
        Place("base", "stages.base:from_scratch", 1),
        *(Place(step, "rlhf.models.load:_prepared", 1) for step in LOADED),
    ],
    "score": [Place(step, "rlhf.models.score:read_scores", 2) for step in SCORED],
    "log-probability": [
        *(Place(step, "rlhf.generation.transformers:choose", 40, 1) for step in ("preferences-2", *SCORED)),
        Place("ppo", "stages.ppo:completion_logprobs", 8),
    ],
    "value": [Place("ppo", "stages.ppo:completion_values", 8)],
    "KL": [Place("ppo", "stages.ppo:kl_estimate")],
    "advantage": [Place("ppo", "stages.ppo:gae")],
}


def killed(step: str, processes: int = 1) -> str:
    """The row of a step that is killed."""
    whom = "" if processes == 1 else f" of one of {processes} processes"
    return f"random kill -9{whom}, {step}: the same end bit for bit"


def poisoned(name: str) -> str:
    """The row of a place where NaN is put."""
    steps = sorted({place.step for place in PLACES[name]}, key=lives.STEPS.index)
    return f"NaN from {name} on: {', '.join(steps)}"


def undisturbed(zygote: lives.Zygote, work: Path) -> Path:
    """The reference, made once."""
    found = work / "reference" / "runs" / "tiny"
    return found if (found / lives.STEPS[-1]).is_dir() else lives.reference(zygote, work / "reference")


def lives_row(steps: Sequence[str], kills: int, work: Path, *, processes: int = 1) -> None:
    """Every end of every step is compared: with the undisturbed run, or of several processes with their first life."""
    zygote = lives.Zygote()
    finished = undisturbed(zygote, work)
    settings = lives.BOTH if processes > 1 else []
    for step in steps:
        with tempfile.TemporaryDirectory(dir=work) as name:
            folder = lives.without(finished, step, Path(name))
            how = {"kills": kills, "rng": random.Random(step), "settings": settings, "processes": processes}
            found = lives.lives(zygote, folder, step, **how)
        like = found.ends[0] if processes > 1 else lives.outcome(finished / step)
        other = sum(end != like for end in found.ends)
        tries = f"{found.kills} kills, {found.resumed} lives that went on, {len(found.ends)} ends"
        seconds = sorted(found.recovered)
        middle = f"{short(statistics.median(seconds))} (at most {short(seconds[-1])})" if seconds else ""
        record(killed(step, processes), tries=tries, failures=str(other), seconds=middle)
    zygote.close()


def nodes_row(steps: Sequence[str], losses: int, work: Path) -> None:
    """Two machines as namespaces of the network, of which one is lost at a random save; the ends are compared."""
    zygote = lives.Zygote()
    finished = undisturbed(zygote, work)
    zygote.close()
    both = nodes.Nodes()
    try:
        for step in steps:
            for lost in (1, 0):
                rng, seconds, other = random.Random(f"{step} {lost}"), [], 0
                with tempfile.TemporaryDirectory(dir=work) as name:
                    folder = lives.without(finished, step, Path(name))
                    artefact = folder / "runs" / "tiny" / step
                    nodes.to_the_end(both, folder, step)
                    end, saves = lives.outcome(artefact), lives.events(folder, "save")
                    for _ in range(losses):
                        shutil.rmtree(artefact)
                        after = rng.randint(1, saves - 1)
                        seconds.append(nodes.to_the_end(both, folder, step, lost=lost, after=after) or 0.0)
                        other += lives.outcome(artefact) != end
                cells = {"tries": str(losses), "failures": str(other)}
                middle = f"{short(statistics.median(seconds))} (at most {short(max(seconds))})"
                record(f"machine {lost + 1} of two lost and started again, {step}", **cells, seconds=middle)
    finally:
        both.close()


def garbage_row(names: Sequence[str], work: Path) -> None:
    """Exit code 76, saves that are finite, and without the poison the end of the undisturbed run."""
    zygote = lives.Zygote()
    finished = undisturbed(zygote, work)
    for name in names:
        failures = 0
        for place in PLACES[name]:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                problem = next(problems(zygote, finished, place, Path(folder), gradient=name == "gradient"), None)
            print(name, place.step, place.function, problem or "stopped, and ended as it should", flush=True)
            failures += problem is not None
        record(poisoned(name), tries=str(len(PLACES[name])), failures=str(failures))
    zygote.close()


def problems(zygote: lives.Zygote, finished: Path, place: Place, folder: Path, *, gradient: bool) -> Iterator[str]:
    """What went wrong when this place was spoilt."""
    lives.without(finished, place.step, folder)
    hook, run_dir = folder / "hook.py", folder / "runs" / "tiny"
    module, _, function = place.function.partition(":")
    hook.write_text(
        POISON.format(module=module, function=function, call=place.call, part=place.part, gradient=gradient)
    )
    command = ["run", f"stage={place.step}", *lives.SMALL, "save_every=0s"]
    code = zygote.run(command, folder, {"RLHF_TEST_HOOK": str(hook)})
    if code != 76:
        yield f"exit code {code}: {(folder / 'log').read_text()[-600:]}"
    for save in (run_dir / f".{place.step}.partial" / "resume").glob("save-*/*.safetensors"):
        # Python's own state of random numbers is no tensor; what is one is finite but for a best reward not yet known.
        if not all(bool(torch.isfinite(tensor).all()) for tensor in load_file(save).values()):
            yield f"{save.parent.name} is not finite"
    if zygote.run(command, folder) != 0:
        yield f"not resumed: {(folder / 'log').read_text()[-600:]}"
    if lives.outcome(run_dir / place.step) != lives.outcome(finished / place.step):
        yield "another end"
