"""What a command line asks for, and the words that every command understands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rlhf.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from rlhf.config import Loaded

KEYS = """\
keys
  stage=NAME[,NAME]   only these: a stage above (all its rounds) or one step, such as rejection-2
  config=NAME|FILE    the recipe: a name in configs/ or a file                      [tiny]
  run=NAME            folder of the results                  [the recipe's file name]
  runs_dir=FOLDER     folder of all runs                        [$RLHF_RUNS, or runs]
  SECTION.KEY=VALUE   one setting, over the recipe's; `rlhf show` lists them
"""


@dataclass(frozen=True)
class Command:
    """One row of the table of commands: what it is for, and the words it takes beside the keys of all."""

    name: str
    help: str
    more: str = ""
    examples: tuple[str, ...] = ()
    flags: Mapping[str, str] = field(default_factory=dict)
    """`--name` -> what it does."""
    options: Mapping[str, str] = field(default_factory=dict)
    """`key` of `key=value` -> what it does; checked by the command."""
    words: Mapping[str, str] = field(default_factory=dict)
    """The first of its plain words -> what it does; `*` stands for any."""


@dataclass
class Request:
    """A parsed command line."""

    command: Command
    stage: str | None = None
    config: str | None = None
    overrides: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    help: bool = False

    def load(self) -> Loaded:
        """The recipe that was asked for."""
        from rlhf import config

        return config.load(self.config, self.overrides)

    def option(self, name: str, choices: Sequence[str]) -> str:
        """The option's value, the first of the choices by default; ConfigError for anything else."""
        value = self.options.get(name, choices[0])
        if value not in choices:
            hints = [did_you_mean(value, choices), f"{name} is one of {', '.join(choices)}"]
            raise ConfigError(f"unknown {name} {value}", hints=[hint for hint in hints if hint])
        return value
