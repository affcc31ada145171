"""Several processes, one run: the first leads and decides, the others do each stage's work beside it.

All are started alike, by `accelerate launch -m rlhf run ...`. The leader's run is an ordinary one; before each stage it
says which, and every process then runs the same job, so that no collective depends on the rank. Only the leader's
folder is kept, only its voice is heard; what the others say goes to `logs/rank-N.log` in the run's folder.
"""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from rlhf.planning.steps import Step
    from rlhf.resume.preemption import Stop
    from rlhf.schema import Recipe


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def call(said: str | None) -> str | None:
    """The leader's word, which every process hears: the step to do now, where a model is, a save; None at the end."""
    if size() == 1:
        return said
    from accelerate import PartialState
    from torch import distributed

    PartialState()  # the process group, as accelerate's launcher describes it
    word = [said]
    distributed.broadcast_object_list(word, src=0)
    return word[0]


@contextmanager
def led() -> Iterator[None]:
    """Around the leader's run: when it ends well, the others are told. When it fails, the launcher ends them."""
    yield
    call(None)


def follow(work: Callable[[str, str], None]) -> None:
    """Do every step that the leader calls, by its name and the fingerprint of its saves."""
    while (said := call(None)) is not None:
        work(*said.split())


def beside(step: Step, key: str, recipe: Recipe, run_dir: Path, stop: Stop, *, strict: bool) -> None:
    """A follower's part in a step: the same job, in a folder that nobody keeps, by a voice that nobody hears."""
    from rich.console import Console

    from rlhf.checkpoint import working_folder
    from rlhf.job import Job, job_of
    from rlhf.processes import roll_call, watch
    from rlhf.provenance.meter import Journal
    from rlhf.resume.shards import keeping
    from rlhf.tracking.track import Tracker

    run: Callable[[Job], None] = importlib.import_module(step.module).run
    (run_dir / "logs").mkdir(exist_ok=True)
    log = run_dir / "logs" / f"rank-{rank()}.log"
    # Beside the leader's folder, so that relative paths out of a checkpoint are the same.
    with (
        log.open("a", encoding="utf-8") as file,
        TemporaryDirectory(prefix=f".{step.name}.rank-", dir=run_dir) as folder,
        Tracker(Path(folder), run=recipe.run, step=step.name, console=Console(file=file)) as track,
    ):
        try:
            journal, home = Journal(Path(folder) / "events.jsonl"), working_folder(run_dir / step.name)
            job = job_of(step, recipe, run_dir, Path(folder), track, key, journal, stop, strict=strict, home=home)
            with watch.over(step.name, run_dir), keeping(job.shards, track.count):
                roll_call.hold(step, recipe, run_dir)
                run(job)
                gathered([track.tokens])  # the leader's manifest counts those of all
        except BaseException as error:
            file.write("".join(traceback.format_exception(error)))
            stop.leave(step.name)  # asked to stop, another process may have left while this one waited for it
            raise


def gathered(rows: list[int]) -> list[int]:
    """The rows of all processes, in the order of their numbers."""
    if size() == 1:
        return rows
    from torch import distributed

    parts: list[list[int]] = [[]] * size()
    distributed.all_gather_object(parts, rows)
    return [row for part in parts for row in part]


def any_of(*flags: bool) -> list[bool]:
    """Of each flag, whether it is set on any process."""
    if size() == 1:
        return list(flags)
    import torch

    return [bool(count) for count in summed(torch.tensor([float(flag) for flag in flags]))]


def meet() -> None:
    """Wait until every process is here."""
    if size() > 1:
        from torch import distributed

        distributed.barrier()


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place, wherever the tensor lies: nccl adds up on GPUs only."""
    if size() > 1:
        from torch import distributed

        there = tensor.to("cuda") if distributed.get_backend() == "nccl" else tensor
        distributed.all_reduce(there)
        tensor.copy_(there)
    return tensor
