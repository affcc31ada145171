"""`rlhf launch`: the script that starts a run on other machines. Submits nothing."""

from __future__ import annotations

import re
from pathlib import Path

from rlhf.commands.request import Request
from rlhf.disk import write_text
from rlhf.errors import ConfigError

ENGINES = ("ddp", "fsdp", "zero2", "zero3")


def main(request: Request) -> int:
    """rlhf launch."""
    from rlhf import pipeline
    from rlhf.processes import launch, scripts

    loaded, kind = request.load(), request.words[0]
    nodes, gpus = count(request, "nodes", 1), count(request, "gpus", 8)
    engine, steps = request.option("launch", ENGINES), pipeline.select(pipeline.expand(loaded.recipe), request.stage)
    launch.check(loaded.recipe, steps, nodes * gpus, engine)
    chosen = [f"stage={request.stage}"] if request.stage else []
    words = [f"launch={engine}", *loaded.arguments, *chosen]
    script = scripts.write(kind, loaded.recipe.run, words, nodes=nodes, gpus=gpus)
    if "--dry-run" in request.flags:
        print(script, end="")
        return 0
    path = Path(request.options.get("to", f"{loaded.recipe.run}.{'slurm' if kind == 'slurm' else 'sh'}"))
    write_text(path, script)
    print(f"{path}: {nodes} x {gpus} processes; " + (f"sbatch {path}" if kind == "slurm" else f"bash {path} 0 ADDRESS"))
    return 0


def count(request: Request, name: str, default: int) -> int:
    """An option that is a whole number above 0."""
    text = request.options.get(name, str(default))
    if not re.fullmatch(r"[1-9]\d*", text):
        raise ConfigError(f"{name} must be a whole number above 0 (got {text})", where="given on the command line")
    return int(text)
