"""The command line: `rlhf COMMAND [KEY=VALUE ...]`. Parses, says, and leaves the doing to the library.

Nothing here imports torch, and nothing that only some commands need is imported before they need it.
"""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf import __version__
from rlhf.errors import ConfigError, RlhfError, did_you_mean, disk_error

if TYPE_CHECKING:
    from rlhf.config import Loaded
    from rlhf.steps import Step

COMMANDS = {
    "run": "make every step that is missing or stale, skip the others, and write the report",
    "plan": "say what `run` would do, and why; touch nothing",
    "show": "print every setting, its value, and where the value came from",
    "status": "say which artefacts of a run are done, stale or missing",
    "report": "write report.json and report.html of a run again",
}

KEYS = """\
keys
  stage=NAME[,NAME]   only these: a stage above (all its rounds) or one step, such as rejection-2
  config=NAME|FILE    the recipe: a name in configs/ or a file                      [tiny]
  run=NAME            folder of the results                  [the recipe's file name]
  runs_dir=FOLDER     folder of all runs                        [$RLHF_RUNS, or runs]
  SECTION.KEY=VALUE   one setting, over the recipe's; `rlhf show` lists them
"""

FLAGS = {
    "--rerun": "make the steps again even if nothing changed",
    "--reuse": "keep steps that only the code has changed for",
}

HELP = {
    "run": "A step is skipped when its settings, inputs and code are what they were; else the reason is said.\n",
    "plan": "A step is listed with what `run` would do if given the same arguments.\n",
    "show": "The value is printed as you would type it. With stage=NAME, only the settings of that section.\n",
    "status": "Stale means that `run` with the same arguments would make the step again.\n",
    "report": "The report is also written at the end of every run that made something.\n",
}

EXAMPLES = {
    "run": ["rlhf run", "rlhf run stage=ppo ppo.kl_coef=0.005", "rlhf run stage=rejection-2 --rerun"],
    "plan": ["rlhf plan", "rlhf plan ppo.kl_coef=0.005"],
    "show": ["rlhf show", "rlhf show stage=ppo config=llama2-70b"],
    "status": ["rlhf status", "rlhf status run=tiny-2"],
    "report": ["rlhf report", "rlhf report run=tiny-2", "rlhf report format=markdown"],
}
FORMATS = ("terminal", "markdown")


@dataclass
class Request:
    """A parsed command line."""

    command: str
    stage: str | None = None
    config: str | None = None
    overrides: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    help: bool = False
    format: str = "terminal"

    def load(self) -> Loaded:
        """The recipe that was asked for."""
        from rlhf import config

        return config.load(self.config, self.overrides)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    first = os.environ.get("RANK", "0") == "0"  # of several processes one speaks
    try:
        return dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        return complain("interrupted: finished steps are kept, start it again to go on", 130, first)
    except BrokenPipeError:  # the reader of our output has seen enough: `rlhf show | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except RlhfError as error:
        if os.environ.get("RLHF_DEBUG") == "1":
            traceback.print_exc()
        return complain(f"error: {error}", error.exit_code, first)
    except Exception as error:
        full = disk_error(error, Path.cwd()) if isinstance(error, OSError) else None
        if full:
            return complain(f"error: {full}", full.exit_code, first)
        if os.environ.get("RLHF_DEBUG") == "1":
            raise
        hint = "RLHF_DEBUG=1 before the same command shows where; please report it"
        return complain(f"error: a bug of ours: {type(error).__name__}: {error}\n  {hint}", 1, first)


def complain(text: str, exit_code: int, aloud: bool) -> int:
    """Print to stderr, if this process is the one that speaks, and return the exit code."""
    if aloud:
        print(text, file=sys.stderr)
    return exit_code


def dispatch(arguments: list[str]) -> int:
    """Parse and call the command."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"rlhf {__version__}")
        return 0
    request = parse(arguments)
    if request.help:
        print(command_help(request.command), end="")
        return 0
    commands: dict[str, Callable[[Request], int]] = {
        "run": run,
        "plan": plan,
        "show": show,
        "status": status,
        "report": report,
    }
    return commands[request.command](request)


def parse(arguments: Sequence[str]) -> Request:
    """A command, `key=value` words and flags, in any order after the command."""
    command = arguments[0]
    if command not in COMMANDS:
        what = "expected a command first, got" if "=" in command or command.startswith("-") else "unknown command"
        hints = [did_you_mean(command, COMMANDS), f"commands: {', '.join(COMMANDS)}"]
        raise ConfigError(f"{what} {command}", hints=[hint for hint in hints if hint])
    request = Request(command)
    for word in arguments[1:]:
        if word in ("-h", "--help"):
            request.help = True
        elif word.startswith("-"):
            request.flags.add(flag(word, command))
        else:
            key, equals, value = word.partition("=")
            if key in ("stage", "config") and not value:
                raise ConfigError(f"{key} has no value", where="given on the command line")
            if not equals:
                raise ConfigError(f"expected KEY=VALUE, got {word}", hints=stray(word))
            if key == "stage":
                request.stage = value
            elif key == "config":
                request.config = value
            elif key == "format" and command == "report":
                if value not in FORMATS:
                    raise ConfigError(f"unknown format {value}", hints=[f"formats: {', '.join(FORMATS)}"])
                request.format = value
            else:
                request.overrides.append(word)
    return request


def flag(word: str, command: str) -> str:
    """The flag, if it is one of `run` or `plan`."""
    if word in FLAGS and command in ("run", "plan"):
        return word
    if word in FLAGS:
        raise ConfigError(f"{word} is for `rlhf run` and `rlhf plan`, not for `rlhf {command}`")
    if "=" in word:
        raise ConfigError(f"unknown option {word}", hints=[f"settings have no dashes: {word.lstrip('-')}"])
    hints = [did_you_mean(word, FLAGS), f"options: {', '.join(FLAGS)}, --help"]
    raise ConfigError(f"unknown option {word}", hints=[hint for hint in hints if hint])


def stray(word: str) -> list[str]:
    """What a word without `=` may have meant."""
    from rlhf.steps import table

    stages = [stage.name for stage in table()]
    if word in stages or word.rpartition("-")[0] in stages:
        return [f"did you mean stage={word}?"]
    if word.endswith((".yaml", ".yml")):
        return [f"did you mean config={word}?"]
    return [hint for hint in [did_you_mean(word, FLAGS)] if hint]


# --- commands ---


def run(request: Request) -> int:
    """rlhf run."""
    from rlhf import pipeline
    from rlhf.checkpoint import shown

    loaded = request.load()
    outcome = pipeline.run_recipe(
        loaded.recipe,
        loaded.run_dir,
        stage=request.stage,
        rerun="--rerun" in request.flags,
        reuse="--reuse" in request.flags,
        origins=loaded.origins,
        arguments=loaded.arguments,
        say=lambda line: print(line, flush=True),
    )
    if outcome.report is not None:
        from rich.console import Console

        from rlhf.report import summary

        words = shlex.join(["rlhf", "report", *loaded.arguments, "format=markdown"])
        Console().print(summary(outcome.report, next_command=words))
    print(f"report: {shown(loaded.run_dir / 'report.html')}")
    return 0


def plan(request: Request) -> int:
    """rlhf plan."""
    from rlhf import pipeline

    loaded = request.load()
    steps = pipeline.select(pipeline.expand(loaded.recipe), request.stage)
    rerun, reuse = "--rerun" in request.flags, "--reuse" in request.flags
    planned = pipeline.plan(steps, loaded.recipe, loaded.run_dir, rerun=rerun, reuse=reuse)
    table([step.name, "run" if decision.run else "skip", decision.reason] for step, decision in planned)
    return 0


def show(request: Request) -> int:
    """rlhf show."""
    from rlhf.origins import settings
    from rlhf.origins import show as text

    loaded = request.load()
    rows = [[name, text(value), loaded.origins[name]] for name, value, _ in settings(loaded.recipe)]
    if request.stage:
        sections = {name.partition(".")[0] for name, *_ in rows if "." in name}
        wanted = [word.rpartition("-")[0] if word[-1:].isdigit() else word for word in request.stage.split(",")]
        for section in wanted:
            if section not in sections:
                hints = [did_you_mean(section, sections), f"sections: {', '.join(sorted(sections))}"]
                raise ConfigError(f"no settings for stage {section}", hints=[hint for hint in hints if hint])
        rows = [row for row in rows if row[0].partition(".")[0] in wanted and "." in row[0]]
    table(rows)
    return 0


def status(request: Request) -> int:
    """rlhf status."""
    from rlhf import pipeline
    from rlhf.checkpoint import is_locked
    from rlhf.meter import Journal

    loaded = request.load()
    run_dir = loaded.run_dir
    steps = pipeline.select(pipeline.expand(loaded.recipe), request.stage)
    events, busy = Journal(run_dir / "events.jsonl").last(), is_locked(run_dir)
    rows = []
    for step, decision in pipeline.plan(steps, loaded.recipe, run_dir):
        last = events.get(step.name, {})
        if last.get("event") == "start" and busy:
            rows.append([step.name, "running", "", "", "", f"since {last['time']}"])
        else:
            rows.append([step.name, *artefact(step, run_dir, decision.run, decision.reason, last)])
    table([["step", "state", "made", "took", "size", "why"], *rows])
    return 0


def artefact(step: Step, run_dir: Path, stale: bool, reason: str, last: dict[str, str]) -> list[str]:
    """State, when, seconds, size and why of one step's artefact."""
    from rlhf.checkpoint import read_manifest
    from rlhf.pipeline import size

    try:
        manifest = read_manifest(run_dir / step.name)
    except RlhfError:
        if last.get("event") == "failed":
            return ["failed", last["time"], "", "", last["reason"].splitlines()[0]]
        if last.get("event") == "start":
            return ["interrupted", last["time"], "", "", "it never finished; `rlhf run` starts it over"]
        return ["missing", "", "", "", reason]
    figures = [manifest["finished_at"], f"{manifest['seconds']:.1f} s", f"{size(manifest) / 1e6:.1f} MB"]
    return ["stale" if stale else "done", *figures, reason]


def report(request: Request) -> int:
    """rlhf report."""
    from rich.console import Console

    from rlhf import pipeline
    from rlhf.checkpoint import shown
    from rlhf.errors import MissingError
    from rlhf.report import markdown, summary, write

    loaded = request.load()
    if not loaded.run_dir.is_dir():
        raise MissingError(
            f"{shown(loaded.run_dir)} does not exist", hints=[f"make it: rlhf run run={loaded.recipe.run}"]
        )
    steps = pipeline.expand(loaded.recipe)
    written = write(loaded.run_dir, loaded.recipe, steps, origins=loaded.origins)
    if request.format == "markdown":
        print(markdown(written))
        return 0
    Console().print(summary(written))
    print(f"report: {shown(loaded.run_dir / 'report.html')}")
    return 0


# --- text ---


def table(rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as their longest cell, two spaces apart, the last one ragged."""
    lines = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)][:-1]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)]
        print("  ".join(cells).rstrip())


def usage() -> str:
    """The one screen of `rlhf --help`."""
    from rlhf.steps import table as stages

    commands = "".join(f"  {name:<8}{text}\n" for name, text in COMMANDS.items())
    listed = "".join(f"  {stage.name:<13}{stage.help}\n" for stage in stages())
    flags = "".join(f"  {name:<9}{text}\n" for name, text in FLAGS.items())
    examples = "".join(f"  {line}\n" for line in ["rlhf run", *EXAMPLES["run"][1:2], "rlhf run config=hh run=my-hh"])
    return (
        "usage: rlhf COMMAND [KEY=VALUE ...]     (rlhf COMMAND --help says more)\n\n"
        f"commands\n{commands}\nstages, in order\n{listed}\n{KEYS}\n"
        f"options of run and plan\n{flags}\nexamples\n{examples}"
    )


def command_help(command: str) -> str:
    """`rlhf COMMAND --help`."""
    options = "".join(f"  {name:<9}{text}\n" for name, text in FLAGS.items()) if command in ("run", "plan") else ""
    examples = "".join(f"  {line}\n" for line in EXAMPLES[command])
    flags = f"options\n{options}\n" if options else ""
    return (
        f"usage: rlhf {command} [KEY=VALUE ...]\n\n{COMMANDS[command]}\n{HELP[command]}\n"
        f"{KEYS.replace(' above', '')}\n{flags}examples\n{examples}"
    )
