"""The command line: `rlhf COMMAND [KEY=VALUE ...]`. Parses, and leaves the doing to `rlhf.commands`.

Nothing here imports torch, and nothing that only some commands need is imported before they need it.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf import __version__
from rlhf.commands import COMMANDS
from rlhf.commands.request import KEYS, Command, Request
from rlhf.errors import ConfigError, RlhfError, did_you_mean, disk_error
from rlhf.reporting.text import plain, redact

BY_NAME = {command.name: command for command in COMMANDS}


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
        print(plain(redact(text)), file=sys.stderr)
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
    exit_code: int = importlib.import_module(f"rlhf.commands.{request.command.name}").main(request)
    return exit_code


def parse(arguments: Sequence[str]) -> Request:
    """A command, then `key=value`, flags and the command's own words, in any order."""
    name = arguments[0]
    if name not in BY_NAME:
        what = "expected a command first, got" if "=" in name or name.startswith("-") else "unknown command"
        hints = [did_you_mean(name, BY_NAME), f"commands: {', '.join(BY_NAME)}"]
        raise ConfigError(f"{what} {name}", hints=[hint for hint in hints if hint])
    command = BY_NAME[name]
    request = Request(command)
    for word in arguments[1:]:
        if word in ("-h", "--help"):
            request.help = True
        elif word.startswith("-"):
            request.flags.add(flag(word, command))
        else:
            take(word, request)
    if command.words and not request.words and not request.help and "" not in command.words:
        wanted = command.words.get("*") or f"a word: {', '.join(command.words)}"
        raise ConfigError(f"rlhf {name} needs {wanted}", hints=command.examples[:2])
    return request


def take(word: str, request: Request) -> None:
    """Put a `key=value`, or one of the command's own words, where it belongs."""
    key, equals, value = word.partition("=")
    command = request.command
    if not equals:
        if not request.words and not {word, "*"} & set(command.words):
            raise ConfigError(f"expected KEY=VALUE, got {word}", hints=stray(word, command))
        request.words.append(word)
        return
    if key in ("stage", "config") and not value:
        raise ConfigError(f"{key} has no value", where="given on the command line")
    if key in command.options:
        request.options[key] = value
    elif key == "stage":
        request.stage = value
    elif key == "config":
        request.config = value
    else:
        request.overrides.append(word)


def flag(word: str, command: Command) -> str:
    """The flag, if it is one of the command's."""
    if word in command.flags:
        return word
    owners = [f"`rlhf {other.name}`" for other in COMMANDS if word in other.flags]
    if owners:
        raise ConfigError(f"{word} is for {' and '.join(owners)}, not for `rlhf {command.name}`")
    if "=" in word:
        raise ConfigError(f"unknown option {word}", hints=[f"settings have no dashes: {word.lstrip('-')}"])
    hints = [did_you_mean(word, command.flags), f"options: {', '.join((*command.flags, '--help'))}"]
    raise ConfigError(f"unknown option {word}", hints=[hint for hint in hints if hint])


def stray(word: str, command: Command) -> list[str]:
    """What a word without `=` may have meant."""
    from rlhf.planning.steps import table

    stages = [stage.name for stage in table()]
    if meant := did_you_mean(word, command.words):
        return [meant]
    if word in stages or word.rpartition("-")[0] in stages:
        return [f"did you mean stage={word}?"]
    if word.endswith((".yaml", ".yml")):
        return [f"did you mean config={word}?"]
    return [hint for hint in [did_you_mean(word, command.flags)] if hint]


# --- help ---


def usage() -> str:
    """The one screen of `rlhf --help`."""
    from rlhf.planning.steps import table as stages

    commands = "".join(f"  {command.name:<11}{command.help}\n" for command in COMMANDS)
    listed = "".join(f"  {stage.name:<13}{stage.help}\n" for stage in stages())
    lines = ["rlhf run", BY_NAME["run"].examples[1], "rlhf run config=hh run=my-hh"]
    return (
        "usage: rlhf COMMAND [KEY=VALUE ...]     (rlhf COMMAND --help says more)\n\n"
        f"commands\n{commands}\nstages, in order\n{listed}\n{KEYS}\n"
        + section("options of run and plan", BY_NAME["run"].flags)
        + "examples\n"
        + "".join(f"  {line}\n" for line in lines)
    )


def command_help(command: Command) -> str:
    """`rlhf COMMAND --help`."""
    shown = {"" if word == "*" else word: text for word, text in command.words.items()}
    return (
        f"usage: rlhf {command.name} {'WORD ' if command.words else ''}[KEY=VALUE ...]\n\n"
        f"{command.help}\n{command.more}\n\n{KEYS.replace(' above', '')}\n"
        + section("words", shown)
        + section("more keys", {f"{key}=": text for key, text in command.options.items()})
        + section("options", command.flags)
        + "examples\n"
        + "".join(f"  {line}\n" for line in command.examples)
    )


def section(title: str, rows: Mapping[str, str]) -> str:
    """A titled list of names and what they do, or nothing."""
    width = max((len(name) for name in rows), default=0) + 2
    return f"{title}\n" + "".join(f"  {n:<{width}}{text}\n" for n, text in rows.items()) + "\n" if rows else ""
