"""The files a step writes line by line; a save takes a copy, and a life that goes on from it begins with the copy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from rlhf.disk import append_line

NAMES = ("metrics.jsonl", "samples.jsonl", "ledger.jsonl")


class Streams:
    """JSON lines in `folder`, begun anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, FileIO] = {}
        for name in NAMES:
            (folder / name).unlink(missing_ok=True)

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one line."""
        self.write(name, json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    def write(self, name: str, text: str) -> None:
        """Add a line, or a part of one that is too long to be held at once."""
        path = self.folder / name
        if name not in self._open:
            self._open[name] = path.open("ab", buffering=0)
        # Half of a surrogate pair cannot be encoded; backslashreplace writes it as the JSON escape that means it.
        append_line(self._open[name], text.encode(errors="backslashreplace"), path)

    def store(self, save: Path) -> None:
        """Copy every line so far into a save."""
        for name in NAMES:
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, save / name)

    def restore(self, save: Path) -> None:
        """Put the lines back to what a save holds."""
        self.close()
        for name in NAMES:
            (self.folder / name).unlink(missing_ok=True)
            if (save / name).exists():
                shutil.copyfile(save / name, self.folder / name)

    def close(self) -> None:
        """Finish the files; a line after that opens them again."""
        for file in self._open.values():
            file.close()
        self._open.clear()
