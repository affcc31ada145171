"""`rlhf check WHAT`: each check is a module of its own, `rlhf/commands/check_WHAT.py`."""

from __future__ import annotations

import importlib

from rlhf.commands.request import Request


def main(request: Request) -> int:
    """rlhf check."""
    exit_code: int = importlib.import_module(f"rlhf.commands.check_{request.words[0]}").main(request)
    return exit_code
