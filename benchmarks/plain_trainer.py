"""What a plain transformers Trainer does under the kills, damage and garbage that bench_reliability.py has for ours.

As its users run it: `save_steps=1`, two checkpoints kept, `train(resume_from_checkpoint=True)` wherever there is one,
and every other setting as it comes. The model is a Llama of two layers on made-up rows, with attention dropout, so that
a wrong random state shows. A start that fails twice on what it finds is stuck: somebody must delete by hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import lives
import power_cuts
import torch
from measure import quiet
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

STEPS, DAMAGED_AT = 16, 14
ROWS, LENGTH, BATCH = 60, 32, 8
RESULT = "result.json"
Poison = Callable[[Any], None]
"""Given the trainer before it begins; spoils something in it."""


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Made-up ids."""

    def __init__(self) -> None:
        self.ids = torch.randint(3, 256, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


def trainer_in(folder: Path, callbacks: list[TrainerCallback]) -> Trainer:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        attention_dropout=0.1,
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        save_steps=1,
        save_total_limit=2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    return Trainer(model=LlamaForCausalLM(config), args=arguments, train_dataset=Rows(), callbacks=callbacks)


def train(folder: Path, poison: Poison | None, callbacks: list[TrainerCallback]) -> None:
    """Train to the end, and leave the digests of weights and losses."""
    trainer = trainer_in(folder, callbacks)
    if poison is not None:
        poison(trainer)
    trainer.train(resume_from_checkpoint=True if get_last_checkpoint(str(folder)) else None)
    weights = b"".join(value.numpy().tobytes() for _, value in sorted(trainer.model.state_dict().items()))
    losses = [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]
    finite = all(bool(value.isfinite().all()) for value in trainer.model.state_dict().values())
    made = {"weights": hashlib.sha256(weights).hexdigest(), "losses": losses, "finite": finite}
    (folder / RESULT).write_text(json.dumps(made))


def forked(folder: Path, *, poison: Poison | None = None, callbacks: list[TrainerCallback] | None = None) -> int:
    """A child that trains in the folder; its output is added to folder/log. The child's pid."""
    folder.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        quiet()
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        train(folder, poison, callbacks or [])
        code = 0
    finally:
        os._exit(code)


def run(folder: Path, **more: Any) -> int:
    """The child's exit code."""
    return waited(forked(folder, **more))


def waited(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def result(folder: Path) -> dict[str, Any] | None:
    return json.loads((folder / RESULT).read_text()) if (folder / RESULT).exists() else None


@cache
def undisturbed(work: Path) -> tuple[Path, float]:
    """A run that nothing disturbed, and the seconds of computing it took."""
    folder = work / "plain"
    shutil.rmtree(folder, ignore_errors=True)
    child = forked(folder)
    _, status, used = os.wait4(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, (folder / "log").read_text()[-2000:]
    return folder, used.ru_utime + used.ru_stime


# --- rows ---


def lives_cell(work: Path, kills: int) -> str:
    """Killed at random moments, drawn as ours are; after a run that is stuck or over, the next begins anew."""
    finished, seconds = undisturbed(work)
    same, rng, ends, killed = result(finished), random.Random(0), Counter[str](), 0
    while True:
        folder, failed = work / "plain-killed", 0
        shutil.rmtree(folder, ignore_errors=True)
        while (found := result(folder)) is None and failed < 2:
            child = forked(folder)
            if killed < kills:
                lives.watched(child, rng.uniform(0.0, seconds))
                time.sleep(rng.uniform(0.0, 0.02))
                os.kill(child, signal.SIGKILL)
            code = waited(child)
            killed += code == -signal.SIGKILL
            failed = failed + 1 if code > 0 else 0
        ends["stuck" if found is None else "the same end" if found == same else "another end"] += 1
        if killed >= kills:
            break
    return f"{killed} kills in {ends.total()} runs: {told(ends)}"


def commit_cell(work: Path, places: int) -> str:
    """Killed at system calls, evenly spread over one save, then started again."""
    same, ends = result(undisturbed(work)[0]), Counter[str]()
    folder = work / "plain-commit"
    calls = traced(folder, ["-o", str(work / "calls")])
    assert calls == 0, calls
    lines = (work / "calls").read_text().splitlines()
    names = [line.partition("(")[0] for line in lines if "(" in line and line.split("(")[0].isidentifier()]
    places_of = [(name, names[: i + 1].count(name)) for i, name in enumerate(names) if name != "exit_group"]
    step = max(1, len(places_of) // places)
    for name, when in places_of[::step]:
        inject = ["-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={name}:signal=SIGKILL:when={when}"]
        if traced(folder, inject) != -signal.SIGKILL:
            ends["not killed"] += 1
            continue
        ends["stuck" if run(folder) else "the same end" if result(folder) == same else "another end"] += 1
    return f"{ends.total()} of {len(places_of)} calls: {told(ends)}"


class Gate(TrainerCallback):
    """At the end of step 3 the child waits to be traced, and goes on; it leaves once its save is there."""

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGSTOP)

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 3:
            os._exit(0)


def traced(folder: Path, arguments: list[str]) -> int:
    """Train to the third save under strace; how the child ended."""
    shutil.rmtree(folder, ignore_errors=True)
    child = forked(folder, callbacks=[Gate()])
    os.waitpid(child, os.WUNTRACED)
    tracer = subprocess.Popen(["strace", "-qq", "-p", str(child), *arguments], stderr=subprocess.DEVNULL)
    while "TracerPid:\t0" in Path(f"/proc/{child}/status").read_text():
        pass
    os.kill(child, signal.SIGCONT)
    code = waited(child)
    tracer.wait()
    return code


def damage_cell(work: Path, damages: Callable[[Path, list[Path]], Iterator[tuple[str, bytes | None]]]) -> str:
    """Every third of the same damages to every file of the newest checkpoint, then started again."""
    finished, _ = undisturbed(work)
    kept, folder, ends = work / "plain-kept", work / "plain-damaged", Counter[str]()
    shutil.rmtree(kept, ignore_errors=True)
    code = run(kept, callbacks=[StopAt()])
    assert code == 0, code
    newest = kept / f"checkpoint-{DAMAGED_AT}"
    same = result(finished)
    for file in sorted(path for path in newest.iterdir() if path.is_file()):
        previous = kept / f"checkpoint-{DAMAGED_AT - 1}" / file.name
        others = [previous, *(other for other in newest.iterdir() if other != file)]
        for how, data in list(damages(file, others))[::3]:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(kept, folder)
            target = folder / newest.name / file.name
            target.unlink() if data is None else target.write_bytes(data)
            (folder / RESULT).unlink()
            code = run(folder)
            ends[
                "refused" if code else "unseen, the same end" if result(folder) == same else "unseen, another end"
            ] += 1
            print(file.name, how, code, result(folder) == same, flush=True)
    return f"{ends.total()}: {told(ends)}"


class StopAt(TrainerCallback):
    """Stop where the checkpoint is that will be damaged."""

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        control.should_training_stop = state.global_step == DAMAGED_AT


def garbage_cell(work: Path, place: str) -> str:
    """NaN at the third step; what of it the run and its newest checkpoint show."""
    from safetensors.torch import load_file

    folder = work / "plain-garbage"
    shutil.rmtree(folder, ignore_errors=True)
    code = run(folder, poison=POISONS[place])
    found = result(folder)
    newest = get_last_checkpoint(str(folder))
    finite = all(bool(value.isfinite().all()) for value in load_file(Path(newest) / "model.safetensors").values())
    logged = [loss for _, loss in found["losses"]][2:5] if found else []
    return (
        f"exit code {code}, {len(found['losses']) if found else 0} of {STEPS} steps,"
        f" newest checkpoint {'finite' if finite else 'not finite'}, losses logged from step 3: {logged}"
    )


def in_loss(trainer: Any) -> None:
    real, calls = trainer.compute_loss, []

    def poisoned(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        loss = real(*arguments, **more)
        return loss * float("nan") if len(calls) == 3 else loss

    trainer.compute_loss = poisoned


def in_gradient(trainer: Any) -> None:
    real, calls = trainer.compute_loss, []

    def poisoned(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        loss = real(*arguments, **more)
        if len(calls) == 3:
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    trainer.compute_loss = poisoned


@torch.no_grad()
def in_weights(trainer: Any) -> None:
    trainer.model.model.norm.weight[0] = float("nan")


POISONS: dict[str, Poison] = {"loss": in_loss, "gradient": in_gradient, "weights": in_weights}


def locks_cell(work: Path, races: int) -> str:
    """Two starters on one folder."""
    well = []
    for _ in range(races):
        folder = work / "plain-raced"
        shutil.rmtree(folder, ignore_errors=True)
        well.append([waited(child) for child in [forked(folder), forked(folder)]].count(0))
    return f"{races} races: {', '.join(map(str, well))} of two trained to the end"


def power_cell(work: Path, cuts: int) -> str:
    """Power cut under a run that saves after every step, then started again."""
    (finished, seconds), ends, rng = undisturbed(work), Counter[str](), random.Random(0)
    with power_cuts.disk() as disk:
        for number in range(cuts):
            folder = disk.folder / f"try-{number}"
            child = forked(folder)
            lives.watched(child, rng.uniform(0.3, 1.0) * seconds)
            disk.cut(child)
            kept = folder.is_dir() and get_last_checkpoint(str(folder))
            begun = "" if kept else ", begun anew: nothing had reached the disk"
            code = run(folder)
            end = "stuck" if code else "the same end" if result(folder) == result(finished) else "another end"
            ends[end + begun] += 1
            shutil.rmtree(folder)
    return f"{cuts}: {told(ends)}"


def told(ends: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(ends.items()))
