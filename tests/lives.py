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
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "rounds=2",
    "stages=[base, sft, preferences, reward, rejection, distill, gatt, ppo, scaling, evaluate]",
    "base.steps=20",
    "base.warmup_steps=5",
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
    "distill.prompts=16",
    "distill.keep=all",
    "distill.replay_share=0.3",
    "distill.replay_samples=2",
    "distill.batch_size=2",
    "gatt.dialogues=6",
    "gatt.min_turns=2",
    "gatt.max_turns=4",
    "gatt.batch_size=1",
    "gatt.row_length=256",
    "gatt.epochs=2",
    "gatt.check_targets=false",  # answers of policies that have hardly learned miss their instruction
    "ppo.iterations=5",
    "ppo.batch_size=12",
    "ppo.minibatch_size=6",
    "ppo.heldout_prompts=8",
    "ppo.heldout_every=2",
    "ppo.critic_warmup=1",
    "ppo.max_kl=1000",
    "scaling.shares=[0.0, 1.0]",
    "scaling.prompts=6",
    "scaling.batch_size=2",
    "evaluate.policies=[{name: sft}, {name: ppo}]",
    "evaluate.prompts=8",
    "evaluate.best_of_prompts=2",
    "evaluate.best_of_samples=2",
    "evaluate.dialogues=2",
    "evaluate.turns=[2]",
    "evaluate.attention=1",
    "evaluate.temperatures=[1.0]",
    "evaluate.diversity_prompts=1",
    "evaluate.diversity_samples=2",
    "evaluate.diversity_temperatures=[0.6, 1.0]",
    "evaluate.samples=2",
    "rejection.reward_gate=ignore",
    "rejection.max_truncated=1",
    "distill.reward_gate=ignore",
    "gatt.reward_gate=ignore",
    "ppo.reward_gate=ignore",
    "wandb=disabled",
    "threads=1",
]
STEPS = [
    *("base", "sft", "preferences-1", "reward-1", "rejection-1", "preferences-2", "reward-2", "rejection-2"),
    *("distill", "gatt", "ppo", "scaling", "evaluate"),
]
KILLED = ["base", "sft", "preferences-2", "reward-2", "rejection-2", "distill", "gatt", "ppo", "scaling", "evaluate"]
"""One step of every stage, the last where there are several."""
BOTH = ["gatt.batch_size=2"]
"""For two processes: a row for each."""


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

    def start_together(
        self, arguments: list[str], cwd: Path, environment: dict[str, str], *, processes: int
    ) -> list[int]:
        """So many children of one run, as accelerate's launcher starts them: their pids, the leader's first."""
        if processes == 1:
            return [self.start(arguments, cwd, environment)]
        with socket.socket() as asked:
            asked.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(asked.getsockname()[1])}
        place |= {"WORLD_SIZE": str(processes), "ACCELERATE_USE_CPU": "true", **environment}
        ranks = [str(rank) for rank in range(processes)]
        return [self.start(arguments, cwd, {**place, "RANK": rank, "LOCAL_RANK": rank}) for rank in ranks]

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
    from rlhf.provenance.fingerprint import code_of
    from rlhf.provenance.meter import git_commit, versions

    versions(), git_commit()  # what every life would find out again
    for step in KILLED:
        __import__(f"stages.{step.partition('-')[0]}")
        code_of(f"stages.{step.partition('-')[0]}")
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


def events(folder: Path, event: str) -> int:
    """How often something has happened in a run."""
    journal = folder / "runs" / "tiny" / "events.jsonl"
    return journal.read_text().count(f'"event": "{event}"') if journal.exists() else 0


@dataclass
class Lives:
    """What became of a step that was killed again and again: the artefact of every end, and how often it went on."""

    kills: int = 0
    resumed: int = 0
    recovered: list[float] = field(default_factory=list)
    """Of lives that went on: seconds of computing until they knew from where."""
    ends: list[dict[str, str]] = field(default_factory=list)


def lives(
    zygote: Zygote,
    folder: Path,
    step: str,
    *,
    kills: int,
    rng: random.Random,
    settings: Sequence[str] = (),
    processes: int = 1,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Lives:
    """Start the step and kill it -9 at a random moment, again and again, until it was killed `kills` times and ends.

    The first life is let be, to see how much it computes; a kill comes at any moment of that, and counts if the life
    had begun to work. A life is let go on where the last was killed. What ends before it is removed, and the step begun
    anew, until there were enough. Of several processes one is killed, any of them, and the others are ended after it.
    """
    command, found = ["run", f"stage={step}", *SMALL, *settings, "save_every=0s"], Lives()
    artefact, longest = folder / "runs" / "tiny" / step, 0.0
    while True:
        started, resumed = events(folder, "start"), events(folder, "resume")
        pids = zygote.start_together(command, folder, dict(environment), processes=processes)
        if not longest:
            longest = watched(pids[0], float("inf"))[0]
        elif found.kills < kills:
            _, recovered = watched(pids[0], rng.uniform(0.0, longest), lambda n=resumed: events(folder, "resume") > n)
            found.recovered += [recovered] if recovered else []
            for pid in rng.sample(pids, len(pids)):
                time.sleep(rng.uniform(0.0, 0.02))
                os.kill(pid, signal.SIGKILL)
        codes = [zygote.wait() for _ in pids]
        killed = -signal.SIGKILL in codes
        found.kills += killed and events(folder, "start") > started
        found.resumed = events(folder, "resume")
        if artefact.exists():  # a kill may come when all is done; left there, every later life would skip the step
            found.ends.append(outcome(artefact))
            shutil.rmtree(artefact)
        if not killed:
            assert not any(codes), (codes, (folder / "log").read_text()[-3000:])
            if found.kills >= kills:
                return found


def watched(pid: int, until: float, happened: Callable[[], bool] = lambda: False) -> tuple[float, float | None]:
    """Wait until a child has computed so many seconds, or is over: the seconds, and those when it had `happened`.

    Computing is counted, so that a busy machine moves no kill.
    """
    seconds, when = 0.0, None
    while (now := computed(pid)) is not None and now < until:
        seconds = now
        if when is None and happened():
            when = now
        time.sleep(0.003)
    return seconds, when


def computed(pid: int) -> float | None:
    """Seconds of computing of a child's main thread, or None once it is over."""
    proc = Path("/proc") / str(pid)
    if (proc / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
        return None
    return int((proc / "schedstat").read_text().split()[0]) / 1e9


if __name__ == "__main__":
    serve()
