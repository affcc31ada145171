"""Doing a recipe: for every step, run it or skip it, and say why. A stage's module, and torch, load when it starts."""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf import fingerprint, launch, lock, team
from rlhf.checkpoint import damage, locked, open_artefact, read_manifest, recover, shown, verify, write_manifest
from rlhf.decision import Decision, decide, ingredients, plan
from rlhf.disk import disk_errno, patience, write_text
from rlhf.errors import MissingError, PreemptedError, RlhfError, disk_error
from rlhf.meter import Journal, Meter, git_commit, versions
from rlhf.provenance import outside_the_sections
from rlhf.reporting.text import duration, plain, redact
from rlhf.room import require_room
from rlhf.steps import Stage, Step, expand, select, table
from rlhf.vetting import vet_model, vet_templates

if TYPE_CHECKING:
    from rlhf.schema import Recipe
    from rlhf.track import Tracker

__all__ = ["Decision", "Job", "Outcome", "Stage", "Step", "decide", "expand", "plan", "run_recipe", "select", "table"]

Say = Callable[[str], None]


def derive_seed(*parts: object) -> int:
    """A seed below 2**31 from anything printable: equal parts give equal seeds, on every machine."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4]) & 0x7FFF_FFFF


@dataclass(frozen=True)
class Job:
    """What a stage's `run(job)` gets: settings, folders to read, a folder to write, a voice."""

    name: str
    round: int
    recipe: Recipe
    config: Any
    """The stage's own section of the recipe; of the others only model and microworld may be read."""
    seed: int
    reads: dict[str, tuple[Path, ...]]
    out: Path
    """A temporary folder, which becomes runs/RUN/NAME when the stage returns."""
    track: Tracker

    def every(self, token: str) -> tuple[Path, ...]:
        """The artefact folders that a token of the stage's `reads` stands for, oldest first."""
        return self.reads[token] if token in self.reads else self.reads[self._spelled(token)]

    def one(self, token: str) -> Path:
        """The one artefact folder of a token; an optional one must be asked for with `every`."""
        (folder,) = self.every(token)
        return folder

    def seed_of(self, label: object) -> int:
        """A seed of this step for one purpose, so that purposes do not share random numbers."""
        return derive_seed(self.seed, label)

    def digest_of(self, token: str) -> str:
        """The content digest of the one artefact of a token."""
        return str(read_manifest(self.one(token))["digest"])

    def write_results(self, values: Mapping[str, Any]) -> None:
        """The stage's share of report.json."""
        write_text(self.out / "results.json", json.dumps(values, indent=1, allow_nan=False))

    def _spelled(self, token: str) -> str:
        return next(name for name in self.reads if name.rstrip("*?") == token.rstrip("*?"))


# --- before anything is loaded ---


def preflight(
    planned: Sequence[tuple[Step, Decision]], recipe: Recipe, run_dir: Path, arguments: Sequence[str] = ()
) -> None:
    """Refuse what can be known to fail: missing or damaged artefacts, missing data files, no room on the disk."""
    typed = "".join(f" {shlex.quote(argument)}" for argument in arguments)
    coming = {step.name for step, decision in planned if decision.run}
    for step, decision in planned:
        if not decision.run:
            continue
        for name in step.inputs:
            problem = None if name in coming else damage(run_dir / name)
            if problem is None:
                continue
            gone = not (run_dir / name).exists()
            raise MissingError(
                f"{step.name} reads {shown(run_dir / name)}, which {'does not exist' if gone else 'is damaged'}",
                where=None if gone else problem,
                hints=[f"make it first: rlhf run stage={name}{typed}", f"or run everything: rlhf run{typed}"],
            )
        for setting, path in fingerprint.local_paths(fingerprint.relevant(recipe, step.stage)):
            if not path.exists():
                raise MissingError(f"{setting}: {path} does not exist", where=f"read by {step.name}")
    if coming and recipe.model.path is not None:
        vet_model(recipe.model.path)
        vet_templates(recipe.model.path)
    require_room(run_dir, [step for step, decision in planned if decision.run], recipe)


# --- running ---


@dataclass(frozen=True)
class Outcome:
    """What a run did: the steps it made, the steps it skipped, and the report if one was written."""

    made: tuple[str, ...]
    skipped: tuple[str, ...]
    report: dict[str, Any] | None


def run_recipe(
    recipe: Recipe,
    run_dir: Path,
    *,
    stage: str | None = None,
    rerun: bool = False,
    reuse: bool = False,
    pipeline: Sequence[Stage] | None = None,
    locked_to: bool = False,
    origins: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    say: Say = print,
) -> Outcome:
    """Bring the steps that `stage` selects (all without it) up to date, in order, then write the report.

    Only one process may write to `run_dir`. Interrupted at any point, finished steps stay and half a step never counts.
    With `locked_to` it stops where this machine is not what the run's rlhf.lock says, instead of noting it.
    `arguments` are quoted in hints, so that the reader can copy them; `origins` (where settings came from) is reported.

    Raises RlhfError for whatever the reader can mend; a bug of a stage becomes one, too, with the traceback in a file
    (with RLHF_DEBUG=1 it is raised as it is).
    """
    steps = expand(recipe, pipeline)
    chosen = select(steps, stage, pipeline)
    launch.check(recipe, chosen, team.size())
    if team.rank():
        team.follow(lambda name: team.beside(next(step for step in steps if step.name == name), recipe, run_dir))
        return Outcome((), (), None)
    made, skipped = [], []
    with locked(run_dir), terminable(), patience(recipe.on_disk_full, say), team.led():
        recover(run_dir)
        if locked_to:
            lock.require(run_dir, lock.machine())
        preflight(plan(chosen, recipe, run_dir, rerun=rerun, reuse=reuse), recipe, run_dir, arguments)
        journal, trusted = Journal(run_dir / "events.jsonl"), set[str]()
        width = max(len(step.name) for step in chosen)
        for note in _stale_inputs(chosen, steps, recipe, run_dir):
            say(note)
        for step in chosen:
            # Decided anew: a step made again just now may have come out as it was before.
            decision = decide(step, recipe, run_dir, rerun=rerun, reuse=reuse)
            say(f"{step.name:<{width}}  {'run ' if decision.run else 'skip'}  {decision.reason}")
            if not decision.run:
                if reuse:
                    _accept(step, run_dir)
                journal.write("skip", step.name, reason=decision.reason)
                skipped.append(step.name)
                continue
            for name in sorted(set(step.inputs) - trusted):
                verify(run_dir / name)
            require_room(run_dir, [step], recipe)
            manifest = make(step, recipe, run_dir, decision, journal, locked_to=locked_to, say=say)
            trusted |= {step.name, *step.inputs}
            made.append(step.name)
            say(f"{step.name:<{width}}  done  in {duration(manifest['seconds'])}")
        return Outcome(tuple(made), tuple(skipped), _report(run_dir, recipe, steps, origins, fresh=bool(made)))


def _stale_inputs(chosen: Sequence[Step], steps: Sequence[Step], recipe: Recipe, run_dir: Path) -> Iterator[str]:
    """A line for each artefact that is read although it was not chosen and would itself be made again."""
    names = {step.name for step in chosen}
    read = {name for step in chosen for name in step.inputs} - names
    for step in steps:
        if step.name in read and (decision := decide(step, recipe, run_dir)).run:
            yield f"note: {step.name} is read as it is, though stale: {decision.reason}"


def make(
    step: Step,
    recipe: Recipe,
    run_dir: Path,
    decision: Decision,
    journal: Journal,
    *,
    locked_to: bool = False,
    say: Say = print,
) -> dict[str, Any]:
    """Run one step's stage into a fresh artefact and return its manifest; the run's lock says on what it was made."""
    threads = recipe.threads
    if threads and "torch" not in sys.modules:
        os.environ.update({"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)})
    made_from = ingredients(step, recipe, run_dir, {})
    key = fingerprint.digest(
        {**made_from, "data": {path: facts["sha256"] for path, facts in made_from["data"].items()}}
    )
    seed = derive_seed(recipe.seed, step.name)
    about: dict[str, Any] = {"step": step.name, "fingerprint": key, **made_from}
    about["recipe"] = outside_the_sections(recipe)
    journal.write("start", step.name, reason=decision.reason)
    meter = Meter()
    try:
        with open_artefact(run_dir / step.name, about) as out:
            from rlhf.track import Tracker

            run: Callable[[Job], None] = importlib.import_module(step.module).run
            _lock(step, run_dir, made_from, locked_to=locked_to, say=say)
            reads = {token: tuple(run_dir / name for name in names) for token, names in step.reads.items()}
            mode, section = recipe.wandb, getattr(recipe, step.stage)
            config = about["config"]
            with Tracker(out, run=recipe.run, step=step.name, wandb_mode=mode, config=config, fingerprint=key) as track:
                team.call(step.name)
                run(Job(step.name, step.round, recipe, section, seed, reads, out, track))
            about |= {**meter.figures(), "tokens": track.tokens or None, "template": _template(out)}
            about |= {"seeds": {"recipe": recipe.seed, "step": seed}}
            about |= {"versions": versions(), "git_commit": git_commit()}
    except BaseException as error:
        message = "interrupted" if isinstance(error, KeyboardInterrupt) else plain(redact(str(error)))
        with suppress(OSError, RlhfError), patience("stop"):
            journal.write("failed", step.name, reason=message)
        explained = _explained(error, step, run_dir)
        if explained is error:
            raise
        raise explained from error
    finally:
        gc.collect()
    (run_dir / f"error-{step.name}.txt").unlink(missing_ok=True)
    lock.add(run_dir, lock.sources(step.name, about))
    journal.write("done", step.name, seconds=about["seconds"])
    return about


def _lock(step: Step, run_dir: Path, made_from: Mapping[str, Any], *, locked_to: bool, say: Say) -> None:
    """Write what the step is about to be made on, once the stage has loaded torch; or hold it to what was written."""
    here = {**lock.machine(), **lock.kernels(), **lock.sources(step.name, made_from)}
    if locked_to:
        lock.require(run_dir, here)
    for line in lock.update(run_dir, here):
        say(f"note: {line}: {step.name} may differ in its last bits from steps made before")


def _template(out: Path) -> str | None:
    """The digest of the chat template of the stage's model, if it made one."""
    templates = sorted(out.rglob("chat_template.jinja"))
    return fingerprint.file_digest(templates[0]) if templates else None


def _accept(step: Step, run_dir: Path) -> None:
    """Note in the manifest that today's code was accepted for this artefact; `code` still says what made it."""
    manifest, code = read_manifest(run_dir / step.name), fingerprint.code_of(step.module)
    if (manifest.get("accepted") or manifest["code"]) != code:
        write_manifest(run_dir / step.name, {**manifest, "accepted": code})


def _report(
    run_dir: Path, recipe: Recipe, steps: Sequence[Step], origins: Mapping[str, str] | None, *, fresh: bool
) -> dict[str, Any] | None:
    """Write the report if a step was made, or if a killed run left none that is newer than every artefact."""
    latest = run_dir / "report.json"
    manifests = [run_dir / step.name / "manifest.json" for step in steps]
    newest = max((path.stat().st_mtime for path in manifests if path.exists()), default=0.0)
    if not fresh and latest.exists() and latest.stat().st_mtime >= newest and (run_dir / "report.html").exists():
        return None
    report = importlib.import_module("rlhf.report")
    written: dict[str, Any] = report.write(run_dir, recipe, steps, origins=origins)
    return written


def _explained(error: BaseException, step: Step, run_dir: Path) -> BaseException:
    """The error as the reader should see it; a bug becomes an RlhfError that says where its traceback is."""
    if isinstance(error, Terminated):
        return PreemptedError(f"{step.name} was asked to stop", hints=["finished steps are kept: start it again"])
    if isinstance(error, RlhfError) or not isinstance(error, Exception):
        return error
    if number := disk_errno(error):
        return disk_error(OSError(number, "", getattr(error, "filename", None)), run_dir) or error
    if os.environ.get("RLHF_DEBUG") == "1":
        return error
    note = run_dir / f"error-{step.name}.txt"
    with suppress(OSError):
        note.write_text(redact("".join(traceback.format_exception(error))), encoding="utf-8", errors="replace")
    first = (str(error).strip() or "no message").splitlines()[0]
    return RlhfError(
        f"{step.name} failed: {type(error).__name__}: {first}",
        where=f"traceback in {shown(note)}",
        hints=["finished steps are kept: mend it and give the same command again"],
    )


class Terminated(KeyboardInterrupt):
    """SIGTERM: the scheduler wants the machine back. An interrupt, so that no library takes it for a failure."""


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM ends the step like an interrupt; outside the main thread nothing changes."""

    def stop(*_: object) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        yield
        return
    try:
        yield
    except Terminated:
        raise PreemptedError("asked to stop", hints=["finished steps are kept: start it again"]) from None
    finally:
        signal.signal(signal.SIGTERM, before)
