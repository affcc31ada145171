"""What the doctor found, for the terminal: colours where there are any, signs everywhere."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from rlhf.doctor.problems import Problems
from rlhf.doctor.rows import Read
from rlhf.doctor.tokens import Mark, Tally, View
from rlhf.reporting.text import plain

STYLES: dict[Mark, str] = {"context": "dim", "trained": "bold green", "score": "bold black on green", "padding": "red"}
SIGNS: dict[Mark, tuple[str, str]] = {
    "context": ("", "|"),
    "trained": ("[", "]"),
    "score": ("[", "*]"),
    "padding": ("", ""),
}
LEGEND = "x| context   [x] trained   [x*] where the score is read   _ padding"


def sources(console: Console, found: list[Read], tallies: dict[str, Tally]) -> None:
    """One line a source; what its tokens come to under it."""
    for read in found:
        _line(console, f"{read.setting}  {read.counts}")
        tally = tallies.get(read.setting)
        if tally is None or not tally.rows:
            continue
        said = f"    {tally.rows:,} rows encoded, {tally.tokens:,} tokens, the longest {tally.longest:,}"
        if tally.trained:
            said += f", {tally.trained / tally.tokens:.0%} in answers"
        if tally.too_long:
            said += f", {tally.too_long:,} too long"
        _line(console, said)


def views(console: Console, tallies: dict[str, Tally]) -> None:
    """The first rows token by token."""
    shown = [view for tally in tallies.values() for view in tally.views]
    for view in shown:
        _line(console, f"\n{view.title}")
        console.print(spelt(view), soft_wrap=not console.is_terminal, highlight=False)
    if shown:
        _line(console, f"\n{LEGEND}")


def spelt(view: View) -> Text:
    """Each token between the signs of what it is for; line breaks are shown, not made."""
    text = Text()
    for token, mark in view.tokens:
        before, after = SIGNS[mark]
        text.append(f"{before}{plain(token).replace(chr(10), '⏎')}{after}", style=STYLES[mark])
    return text


def problems(console: Console, found: Problems) -> None:
    """Every problem with its place and its fix, then how many there are of each kind."""
    for note in found.notes:
        _line(console, f"note: {note}")
    for fault in found.first:
        _line(console, f"\n{plain(fault.where)}")
        _line(console, f"  {plain(fault.what)}", "bold red")
        if fault.hint:
            _line(console, f"  fix: {fault.hint}")
    if len(found) > len(found.first):
        _line(console, f"\nof {len(found):,} problems the first {len(found.first)} are shown; by kind:")
        for what, count in found.by_what.most_common(10):
            _line(console, f"  {count:>9,}  {plain(what)}")
    many = f"{len(found):,} problem{'s' if len(found) != 1 else ''}"
    _line(console, f"\n{many if found.first else 'no problems'}", "bold red" if found.first else "bold green")


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True, highlight=False)
