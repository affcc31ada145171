"""`rlhf annotate export FILE` and `rlhf annotate import FILE`: pairs to people, and their ratings back."""

from __future__ import annotations

import shlex
from pathlib import Path

from rlhf.commands.request import Request
from rlhf.errors import ConfigError, DataError, MissingError


def main(request: Request) -> int:
    """rlhf annotate."""
    from rlhf.annotation import people, store

    if len(request.words) != 2:
        raise ConfigError("rlhf annotate needs export or import, and a file", hints=request.command.examples[:2])
    action, path = request.words[0], Path(request.words[1]).expanduser()
    loaded = request.load()
    if loaded.recipe.preferences.ratings is None:
        raise ConfigError("preferences.ratings is not set", hints=["name the folder: preferences.ratings=FOLDER"])
    folder = Path(loaded.recipe.preferences.ratings).expanduser()
    step = store.newest(folder, request.stage)
    pairs = store.pairs(folder, step)
    if action == "export":
        if path.exists():
            raise ConfigError(f"{path} exists, and may hold ratings", hints=["name another file, or remove it"])
        people.export(path, pairs)
        print(f"{len(pairs):,} pairs of {step} in {path}: fill in choice (1, 2), degree, and for safety safe_1, safe_2")
        return 0
    if not path.is_file():
        raise MissingError(f"there is no file {path}", hints=[f"make it: rlhf annotate export {path}"])
    rated, faults, blank = people.read(path, pairs)
    for fault in faults:
        print(f"{fault.where}\n  {fault.what}\n  fix: {fault.hint}")
    if faults or not rated:
        print(f"{f'{len(faults):,} problems' if faults else 'no row is rated'}; nothing was imported")
        return DataError.exit_code
    store.keep_ratings(folder, step, rated)
    print(f"{len(rated):,} ratings of {step}; {len(pairs) - len(rated):,} pairs without one, {blank:,} left blank")
    print(f"now: {shlex.join(['rlhf', 'run', *loaded.arguments])}")
    return 0
