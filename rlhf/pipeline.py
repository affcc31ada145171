"""Doing a recipe: for every step, run it or skip it, and say why. A stage's module, and torch, load when it starts."""

from __future__ import annotations

import gc
import importlib
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.checkpoint import damage, locked, open_artefact, read_manifest, recover, shown, verify, write_manifest
from rlhf.disk import disk_errno, patience
from rlhf.errors import MissingError, NonFiniteError, PreemptedError, RlhfError, disk_error
from rlhf.job import Job, derive_seed, job_of
from rlhf.planning.context import require_context
from rlhf.planning.decision import Decision, decide, ingredients, plan
from rlhf.planning.room import require_room
from rlhf.planning.steps import Stage, Step, expand, select, table
from rlhf.processes import engine, launch, roll_call, team, watch
from rlhf.provenance import fingerprint, lock
from rlhf.provenance.manifests import outside_the_sections
from rlhf.provenance.meter import Journal, Meter, git_commit, versions
from rlhf.reporting.text import duration, plain, redact
from rlhf.resume.preemption import HINTS, Stop, Terminated, stoppable
from rlhf.resume.resumption import prepare
from rlhf.resume.shards import keeping
from rlhf.security.vetting import vet_model, vet_templates
from rlhf.training import bundle

if TYPE_CHECKING:
    from rlhf.schema import Recipe
    from rlhf.tracking.track import Tracker

__all__ = [
    "Decision",
    "Job",
    "Outcome",
    "Stage",
    "Step",
    "decide",
    "derive_seed",
    "expand",
    "plan",
    "run_recipe",
    "select",
    "table",
]

Say = Callable[[str], None]


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
        folder = Path(recipe.model.path).expanduser()
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise MissingError(
                f"{recipe.model.path} holds no model: it has no config.json",
                where="model.path",
                hints=["name a folder as save_pretrained leaves it: config.json, safetensors, the tokenizer's files"],
            )
        require_context(recipe.model)
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
    strict: bool = False,
    pipeline: Sequence[Stage] | None = None,
    locked_to: bool = False,
    origins: Mapping[str, str] | None = None,
    arguments: Sequence[str] = (),
    report: bool = True,
    say: Say = print,
) -> Outcome:
    """Bring the steps that `stage` selects (all without it) up to date, in order, then write the `report`.

    Only one process may write to `run_dir`. Interrupted at any point, finished steps stay, half a step never counts,
    and the next run goes on from its last save; if that is damaged, from the one before, or with `strict` not at all.
    With `locked_to` it stops where this machine is not what the run's rlhf.lock says, instead of noting it.
    `arguments` are quoted in hints, so that the reader can copy them; `origins` (where settings came from) is reported.

    Raises RlhfError for whatever the reader can mend; a bug of a stage becomes one, too, with the traceback in a file
    (with RLHF_DEBUG=1 it is raised as it is).
    """
    steps = expand(recipe, pipeline)
    chosen = select(steps, stage, pipeline)
    launch.check(recipe, chosen, team.size(), engine.named())
    if team.rank():
        with stoppable() as stop, patience(recipe.on_disk_full, say):
            named = {step.name: step for step in steps}
            team.follow(lambda name, key: team.beside(named[name], key, recipe, run_dir, stop, strict=strict))
        return Outcome((), (), None)
    made, skipped = [], []
    with locked(run_dir), stoppable() as stop, patience(recipe.on_disk_full, say), team.led():
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
            manifest = make(
                *(step, recipe, run_dir, decision, journal, stop),
                strict=strict, reuse=reuse, locked_to=locked_to, say=say,
            )  # fmt: skip
            trusted |= {step.name, *step.inputs}
            made.append(step.name)
            say(f"{step.name:<{width}}  done  in {duration(manifest['seconds'])}")
            stop.leave(step.name)
        written = _report(run_dir, recipe, steps, origins, fresh=bool(made)) if report else None
        return Outcome(tuple(made), tuple(skipped), written)


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
    stop: Stop,
    *,
    strict: bool = False,
    reuse: bool = False,
    locked_to: bool = False,
    say: Say = print,
) -> dict[str, Any]:
    """Run one step's stage into a fresh artefact, or go on with a killed one, and return its manifest.

    The run's lock says on what it was made.
    """
    threads = recipe.threads
    if threads and "torch" not in sys.modules:
        os.environ.update({"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)})
    made_from = ingredients(step, recipe, run_dir, {})
    key = fingerprint.digest(
        {**made_from, "data": {path: facts["sha256"] for path, facts in made_from["data"].items()}}
    )
    about: dict[str, Any] = {"step": step.name, "fingerprint": key, **made_from}
    about["recipe"] = outside_the_sections(recipe)
    journal.write("start", step.name, reason=decision.reason)
    meter = Meter()
    try:
        with open_artefact(run_dir / step.name, about) as out:
            run = stage_of_module(step.module)
            _lock(step, run_dir, made_from, locked_to=locked_to, say=say)
            with _tracker(out, step, recipe, run_dir, made_from, key) as track:
                resume_key = prepare(out, step, about, accept_code=reuse, say=track.say)
                job = job_of(step, recipe, run_dir, out, track, resume_key, journal, stop, strict=strict)
                tokens = _perform(run, job, step, run_dir, about, resume_key)
            about |= {**meter.figures(), "tokens": tokens or None, "template": _template(out)}
            about |= {"decoder": ", ".join(sorted(track.decoders)) or None}
            about |= {"seeds": {"recipe": recipe.seed, "step": job.seed}}
            about |= {"versions": versions(), "git_commit": git_commit()}
    except BaseException as error:
        message = "interrupted" if isinstance(error, KeyboardInterrupt) else plain(redact(str(error)))
        with suppress(OSError, RlhfError), patience("stop"):
            journal.write("failed", step.name, reason=message)
        explained = _explained(error, step, run_dir, stop)
        if explained is error:
            raise
        raise explained from error
    finally:
        gc.collect()
    (run_dir / f"error-{step.name}.txt").unlink(missing_ok=True)
    lock.add(run_dir, lock.sources(step.name, about))
    journal.write("done", step.name, seconds=about["seconds"])
    return about


def _tracker(out: Path, step: Step, recipe: Recipe, run_dir: Path, made_from: Mapping[str, Any], key: str) -> Tracker:
    """The step's voice, told what it was made from and which dashboards the recipe asks for."""
    from rlhf.tracking.lineage import lineage
    from rlhf.tracking.track import Tracker

    return Tracker(
        out,
        run=recipe.run,
        step=step.name,
        wandb_mode=recipe.wandb,
        tensorboard=recipe.tensorboard,
        trackio=recipe.trackio,
        config=made_from["config"],
        fingerprint=key,
        lineage=lineage(run_dir, step.name, step.inputs, made_from, key),
    )


def _perform(
    run: Callable[[Job], None], job: Job, step: Step, run_dir: Path, about: Mapping[str, Any], resume_key: str
) -> int:
    """Run the stage, together with all processes, and count the tokens of all.

    Where numbers stop being finite, a folder for `rlhf replay` is left.
    """
    try:
        with watch.over(step.name, run_dir), keeping(job.shards, job.track.count):
            team.call(f"{step.name} {resume_key}")
            roll_call.hold(step, job.recipe, run_dir)
            run(job)
            return sum(team.gathered([job.track.tokens]))
    except NonFiniteError as error:
        error.met_in(job.saves.iteration)
        left = bundle.write(run_dir, job.out, about, job.recipe, error)
        error.hints = (*error.hints, f"meet it again: rlhf replay {shown(left)}")
        raise
    finally:
        job.shards.close()


def _lock(step: Step, run_dir: Path, made_from: Mapping[str, Any], *, locked_to: bool, say: Say) -> None:
    """Write what the step is about to be made on, once the stage has loaded torch; or hold it to what was written."""
    here = {**lock.machine(), **lock.kernels(), **lock.sources(step.name, made_from)}
    if locked_to:
        lock.require(run_dir, here)
    for line in lock.update(run_dir, here):
        say(f"note: {line}: {step.name} may differ in its last bits from steps made before")


def stage_of_module(module: str) -> Callable[[Job], None]:
    """The `run(job)` of a stage's module, which loads now, and torch with it."""
    run: Callable[[Job], None] = importlib.import_module(module).run
    return run


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


def _explained(error: BaseException, step: Step, run_dir: Path, stop: Stop) -> BaseException:
    """The error as the reader should see it; a bug becomes an RlhfError that says where its traceback is.

    Of several processes that were asked to stop, one may have left while this one waited for it.
    """
    if isinstance(error, Terminated) or (stop.asked and team.size() > 1):
        return PreemptedError(f"{step.name} was asked to stop", hints=HINTS)
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
