"""A conversation in a terminal, answers side by side as they are written; through a pipe, in plain lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf.checkpoint import shown
from rlhf.data.types import RATINGS, Rating
from rlhf.errors import RlhfError, did_you_mean
from rlhf.reporting.text import plain
from rlhf.talk.conversation import Conversation, Reply, keep

NARROWEST = 34  # columns an answer needs to be read beside another
WORDS = "s [N] [RATING] saves answer N as the preferred one · r another answer · n new conversation · q quit"
_COMMAND = re.compile(r"/?([srnq?])((?:\s+\S+){0,2})")


def talk(conversation: Conversation, console: Console, *, save_to: Path, lines: TextIO | None = None) -> None:
    """Read questions and commands until there are none; from `lines`, or from the terminal."""
    ask = _typed(console) if lines is None else (line.rstrip("\n") for line in lines)
    if lines is None:
        console.print(WORDS, highlight=False, markup=False, style="dim")
    for line in ask:
        if not line.strip():
            continue
        found = _COMMAND.fullmatch(line.strip())
        try:
            if found is None:
                show(console, conversation.ask(line.strip()))
            elif not _obey(found[1], found[2].split(), conversation, console, save_to):
                return
        except RlhfError as error:  # of this question; the conversation goes on
            console.print(plain(f"error: {error}"), markup=False, highlight=False)


def _obey(word: str, more: list[str], conversation: Conversation, console: Console, save_to: Path) -> bool:
    """Do a one-letter command; False for the one that ends."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if word == "r":
        show(console, conversation.again())
    elif word == "n":
        conversation.begin()
        say("new conversation")
    elif word == "s":
        number, rating = _preference(more)
        pairs = conversation.prefer(number, rating)
        keep(save_to, pairs)
        say(f"answer {number} kept as {rating}, {len(pairs)} pair{'s' * (len(pairs) > 1)} in {shown(save_to)}")
    elif word == "?":
        say(WORDS)
    return word != "q"


def _preference(words: list[str]) -> tuple[int, Rating]:
    """`2 slightly` as its number and rating; answer 1 and `better` where it does not say."""
    number, rating = 1, "better"
    for word in words:
        if word.isdigit():
            number = int(word)
        else:
            rating = word
    for known in RATINGS:
        if rating == known:
            return number, known
    hints = [did_you_mean(rating, RATINGS), f"ratings: {', '.join(RATINGS)}"]
    raise RlhfError(f"unknown rating {rating}", hints=[hint for hint in hints if hint])


def show(console: Console, growing: Iterator[Sequence[Reply]]) -> None:
    """Answers as they grow on a terminal; once they stand, in the scrollback or the pipe."""
    last: Sequence[Reply] = ()
    if console.is_terminal and not console.is_dumb_terminal:
        with Live(console=console, transient=True, refresh_per_second=12) as live:
            for last in growing:
                live.update(drawn(last, console.width))
        console.print(drawn(last, console.width))
        return
    *_, last = growing
    for number, reply in enumerate(last, start=1):
        console.print(plain(f"[{number} {reply.policy}] {reply.answer.text}"), markup=False, soft_wrap=True)
        console.print(f"    {reply.facts}", markup=False, soft_wrap=True, highlight=False)


def drawn(replies: Sequence[Reply], width: int) -> RenderableType:
    """The answers beside one another where each has room, else below one another."""
    cells = [
        Group(
            Text(f"{number} {reply.policy}", style="bold"),
            Text(plain(reply.answer.text)),
            Text(reply.facts, style="dim"),
        )
        for number, reply in enumerate(replies, start=1)
    ]
    columns = max(1, min(len(cells), width // NARROWEST))
    table = Table.grid(padding=(0, 2, 1, 0), expand=True)
    for _ in range(columns):
        table.add_column(ratio=1, overflow="fold")
    for start in range(0, len(cells), columns):
        table.add_row(*cells[start : start + columns])
    return table


def _typed(console: Console) -> Iterator[str]:
    while True:
        try:
            yield console.input("[bold]>[/] ")
        except EOFError:
            console.print()
            return
