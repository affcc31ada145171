"""`rlhf diff A B`: the settings in which two recipes, or two runs, differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf.commands.request import Request
from rlhf.commands.text import table
from rlhf.config import load
from rlhf.errors import ConfigError
from rlhf.provenance.manifests import as_made, manifests
from rlhf.provenance.origins import settings, show


def main(request: Request) -> int:
    """rlhf diff."""
    if len(request.words) != 2:
        raise ConfigError(
            f"rlhf diff needs two recipes or runs (got {len(request.words)})", hints=["rlhf diff tiny hh"]
        )
    a, b = (made_with(word, request) for word in request.words)
    rows = [[name, a[name], b[name]] for name in a if a[name] != b.get(name) and name != "run"]
    if rows:
        table([["setting", *request.words], *rows])
    else:
        print("no setting differs")
    return 0


def made_with(word: str, request: Request) -> dict[str, str]:
    """The settings of a recipe's name or file, or those that a run's folder was made with."""
    overrides: list[Any] = list(request.overrides)
    if Path(word).is_dir() and manifests(Path(word)):
        found = as_made(Path(word), load(request.config, overrides).recipe)
    else:
        found = load(word, overrides).recipe
    return {name: show(value) for name, value, _ in settings(found)}
