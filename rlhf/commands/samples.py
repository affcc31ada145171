"""`rlhf samples`: the same prompts, answered by every version, with both scores and what changed."""

from __future__ import annotations

import json

from rlhf.checkpoint import shown
from rlhf.commands.request import Request
from rlhf.data.types import DOMAINS
from rlhf.errors import ConfigError, MissingError
from rlhf.reporting.changes import word_changes
from rlhf.reporting.text import plain

MARKS = {"same": ("", ""), "gone": ("[-", "-]"), "new": ("{+", "+}")}  # as `git diff --word-diff` writes them


def main(request: Request) -> int:
    """rlhf samples."""
    loaded = request.load()
    path = loaded.run_dir / "report.json"
    if not path.exists():
        hints = [f"once steps are done: rlhf report run={loaded.recipe.run}", "steps: rlhf status"]
        raise MissingError(f"{shown(path)} does not exist", hints=hints)
    rows = json.loads(path.read_text(encoding="utf-8")).get("samples", [])
    if not rows:
        raise MissingError(f"{shown(path)} holds no samples", hints=["rlhf run stage=evaluate"])
    count = request.options.get("show", "6")
    if not count.isdigit():
        raise ConfigError(f"show must be a number of prompts (got {count})", where="given on the command line")
    for row in rows[: int(count)]:
        kind = f"  ({row['kind']})" if row.get("kind") else ""
        print(plain(" / ".join(turn["content"] for turn in row["prompt"])) + kind)
        before = None
        for policy, reply in row["replies"].items():
            scores = "  ".join(f"{name} {reply[name]:.2f}" for name in (*DOMAINS, "gold") if name in reply)
            text = plain(reply["text"])
            print(f"  {policy:<14} {changed(before, text)}\n  {'':<14} {scores}")
            before = text
        print()
    return 0


def changed(before: str | None, text: str) -> str:
    """The text, with what changed since the version before marked; `=` if nothing did."""
    if before is None:
        return text
    if before == text:
        return "="
    return "".join(MARKS[kind][0] + part + MARKS[kind][1] for kind, part in word_changes(before, text))
