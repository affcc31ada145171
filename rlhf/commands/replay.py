"""`rlhf replay`: run again into a number that was not finite."""

from __future__ import annotations

from pathlib import Path

from rlhf.commands.request import Request
from rlhf.commands.text import table


def main(request: Request) -> int:
    """rlhf replay."""
    from rlhf.errors import NonFiniteError
    from rlhf.training import bundle

    made, met = bundle.replay(Path(request.words[0]))
    place = made["place"]
    if met is None:
        print(f"{made['step']} gets past it now: {made['what']} no longer holds")
        return 0
    again = {name: getattr(met, name) for name in bundle.PLACE}
    rows = [["", "then", "now"]]
    rows += [[name, words(place[name]), words(again[name])] for name in bundle.PLACE]
    table(rows)
    same = all(words(again[name]) == words(place[name]) for name in bundle.PLACE)
    print("the same again" if same else "not finite again, but elsewhere")
    return NonFiniteError.exit_code


def words(value: object) -> str:
    """A cell of the table."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
