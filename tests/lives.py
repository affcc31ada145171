"""Many lives of one command: a process that has imported everything forks one child a life, which can be killed.

Importing torch and TRL takes many seconds and a step of the small recipe one; so the imports are made once. The process
that forks never runs a backward pass itself, which autograd would not survive.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "rounds=2",
    "base.steps=40",
    "base.words=20000",
    "base.extension_steps=3",
    "base.extension_length=96",
    "model.hidden_size=64",
    "model.intermediate_size=128",
    "model.layers=2",
    "sft.data=[{name: microworld, limit: 120}]",
    "sft.epochs=3",
    "preferences.helpfulness_prompts=40",
    "preferences.safety_prompts=40",
    "preferences.test_prompts=20",
    "reward.epochs=2",
    "rejection.prompts=20",
    "rejection.samples_per_prompt=4",
    "rejection.temperatures=[0.8, 1.0]",
    "rejection.temperature_prompts=4",
    "rejection.batch_size=2",
    "rejection.epochs=2",
    "gatt.dialogues=6",
    "gatt.max_turns=4",
    "gatt.batch_size=1",
    "gatt.row_length=256",
    "gatt.epochs=2",
    "ppo.iterations=5",
    "ppo.batch_size=12",
    "ppo.minibatch_size=6",
    "ppo.heldout_prompts=8",
    "ppo.heldout_every=2",
    "ppo.critic_warmup=1",
    "ppo.max_kl=1000",
    "evaluate.prompts=8",
    "evaluate.best_of_prompts=2",
    "evaluate.best_of_samples=2",
    "evaluate.dialogues=2",
    "evaluate.turns=[2]",
    "evaluate.samples=2",
    "rejection.reward_gate=ignore",
    "rejection.max_truncated=1",
    "gatt.reward_gate=ignore",
    "ppo.reward_gate=ignore",
    "wandb=disabled",
    "threads=1",
]
STEPS = [
    *("base", "sft", "preferences-1", "reward-1", "rejection-1", "preferences-2", "reward-2", "rejection-2"),
    *("gatt", "ppo", "evaluate"),
]


class Zygote:
    """A process to fork lives from."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, arguments: list[str], cwd: Path, environment: dict[str, str] | None = None) -> int:
        """Fork a child that does `rlhf ARGUMENTS` in `cwd`; its output is added to cwd/log. The child's pid."""
        self._ask({"arguments": arguments, "cwd": str(cwd), "environment": environment or {}})
        return int(self._answer())

    def wait(self) -> int:
        """The child's exit code; negative if a signal ended it."""
        self._ask({})
        return int(self._answer())

    def run(self, arguments: list[str], cwd: Path, environment: dict[str, str] | None = None) -> int:
        self.start(arguments, cwd, environment)
        return self.wait()

    def close(self) -> None:
        with self._process as process:  # closes what it reads and writes
            assert process.stdin is not None
            process.stdin.close()

    def _ask(self, question: dict[str, object]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the zygote died"
        return line


def serve() -> None:
    """The zygote itself: import everything, then fork when asked."""
    from rlhf.cli import main

    for stage in ("base", "sft", "preferences", "reward", "rejection", "gatt", "ppo", "evaluate"):
        __import__(f"stages.{stage}")
    children: list[int] = []
    for line in sys.stdin:
        question = json.loads(line)
        if not question:
            status = os.waitpid(children.pop(), 0)[1]
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            os.chdir(question["cwd"])
            log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.update(question["environment"])
            code = 1
            try:
                for hook in filter(None, os.environ.get("RLHF_TEST_HOOK", "").split(",")):
                    exec(compile(Path(hook).read_text(), hook, "exec"), {"__name__": "hook"})
                code = main(question["arguments"])
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(child)
        print(child, flush=True)


# --- a reference, and folders that are one step short of it ---


def reference(zygote: Zygote, folder: Path) -> Path:
    """The small recipe, undisturbed; the folder of its run."""
    folder.mkdir(parents=True, exist_ok=True)
    assert zygote.run(["run", *SMALL], folder) == 0, (folder / "log").read_text()[-3000:]
    return folder / "runs" / "tiny"


def without(finished: Path, step: str, folder: Path) -> Path:
    """A copy of a finished run in which `step` was not made yet; the folder to work in."""
    run_dir = folder / "runs" / "tiny"
    run_dir.mkdir(parents=True)
    for name in STEPS[: STEPS.index(step)]:
        shutil.copytree(finished / name, run_dir / name, copy_function=os.link)
    return folder


def outcome(artefact: Path) -> dict[str, str]:
    """SHA-256 of every file of an artefact; of its metrics without the seconds."""
    found = dict(json.loads((artefact / "manifest.json").read_text())["files"])
    if "metrics.jsonl" in found:
        rows = [json.loads(line) for line in (artefact / "metrics.jsonl").read_text().splitlines()]
        timeless = [{key: value for key, value in row.items() if key != "time"} for row in rows]
        found["metrics.jsonl"] = hashlib.sha256(json.dumps(timeless).encode()).hexdigest()
    return found


def starts(folder: Path) -> int:
    """How many lives have begun to work on a step."""
    journal = folder / "runs" / "tiny" / "events.jsonl"
    return journal.read_text().count('"event": "start"') if journal.exists() else 0


def lives(
    zygote: Zygote, folder: Path, step: str, *, kills: int, rng: random.Random, longest: float, log: list[float]
) -> None:
    """Start the step and kill it -9 at a random time, again and again, until it was killed `kills` times and finishes.

    A kill counts if the life had begun to work. A life is let go on where the last was killed. If one ends before it is
    killed, the artefact is removed and the step begun anew, unless it has been killed often enough. `log` takes the
    seconds that the last life took.
    """
    command = ["run", f"stage={step}", *SMALL, "save_every=0s"]
    killed = 0
    while True:
        began, before = time.monotonic(), starts(folder)
        pid = zygote.start(command, folder)
        if killed < kills:
            time.sleep(rng.uniform(0.0, longest))
            os.kill(pid, signal.SIGKILL)
        code = zygote.wait()
        if code == -signal.SIGKILL:
            killed += starts(folder) > before
        else:
            assert code == 0, (code, (folder / "log").read_text()[-3000:])
            if killed >= kills:
                log.append(time.monotonic() - began)
                return
        # A kill may come when all is done: left there, the artefact would have every later life skip the step.
        shutil.rmtree(folder / "runs" / "tiny" / step, ignore_errors=True)


if __name__ == "__main__":
    serve()
