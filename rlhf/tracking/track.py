"""What a stage tells the world: progress, metrics, samples, its ledger and, as copies, W&B, TensorBoard and Trackio.

The files are the truth and no dashboard ever is: it is imported on the first metric only, its start is time-boxed, and
whatever fails inside it is said once and then ignored (rlhf/tracking/mirror.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from rlhf.errors import NonFiniteError
from rlhf.planning.steps import stage_of
from rlhf.provenance.meter import peak_rss_mb
from rlhf.reporting.text import duration, plain, redact
from rlhf.resume.streams import Streams
from rlhf.tracking.histogram import histogram
from rlhf.tracking.lineage import Lineage
from rlhf.tracking.mirror import Dashboard, Mirror
from rlhf.tracking.tensorboard_run import TensorBoardRun
from rlhf.tracking.trackio_run import TrackioRun
from rlhf.tracking.wandb_run import WandbMode, WandbRun, mode_of

SECONDS_BETWEEN_LINES = 30.0
TOGETHER = 10_000  # names of samples


class Progress(Protocol):
    """What `Tracker.progress` hands to the loop it counts."""

    def advance(self, n: int = 1, **shown: float) -> None:
        """Count `n` more; `shown` are the figures to stand beside the bar, the newest of each name."""


class Tracker:
    """The voice of one step.

    Args:
        folder: the step's artefact folder while it is being written, inside the run's folder.
        run: name of the run; groups the steps in W&B.
        step: name of the step, such as `rejection-2`.
        wandb_mode: `auto` is online when logged in and offline otherwise; offline files go to `<run folder>/wandb`.
        config: resolved settings to show in W&B, redacted first.
        fingerprint: of the step; another fingerprint is another run in W&B, the same one is continued.
        lineage: what the step was made from, for W&B's graph of artefacts.
        tensorboard: a copy for TensorBoard, too, in `<run folder>/tensorboard/<step>`.
        trackio: a copy for Trackio, too, in `<run folder>/trackio`.
        console: where to print; stdout by default.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run: str,
        step: str,
        wandb_mode: WandbMode = "disabled",
        config: Mapping[str, Any] | None = None,
        fingerprint: str = "",
        lineage: Lineage | None = None,
        tensorboard: bool = False,
        trackio: bool = False,
        console: Console | None = None,
    ) -> None:
        self.tokens = 0  # trained on or generated; a stage counts them here, and the manifest keeps the sum
        self.decoders: set[str] = set()
        self._before = 0  # of the tokens, by lives before this one
        self.folder = folder
        self.step = step
        self.console = console or Console(soft_wrap=True, highlight=False)
        self._started = monotonic()
        self.streams = Streams(folder)
        self._bars: RichProgress | None = None
        boards: list[Dashboard] = [TensorBoardRun(folder.parent, step)] if tensorboard else []
        boards += [TrackioRun(folder.parent, run, step)] if trackio else []
        if mode_of(wandb_mode) != "disabled":
            about: dict[str, Any] = {"config": config or {}, "fingerprint": fingerprint, "lineage": lineage}
            boards.append(WandbRun(wandb_mode, folder.parent, run, step, **about, say=self.say))
        self._mirrors = [Mirror(board, folder, step, say=self.say) for board in boards]

    def log(self, values: Mapping[str, float | Sequence[float]], step: int) -> None:
        """Append one line to metrics.jsonl: `{"step": n, "time": seconds since the start, name: value, ...}`.

        Many numbers under one name become a histogram.

        Raises:
            NonFiniteError: a value is nan or infinite; nothing is written then.
        """
        spread = {name: [float(x) for x in value] for name, value in values.items() if isinstance(value, Sequence)}
        numbers = {name: float(value) for name, value in values.items() if not isinstance(value, Sequence)}
        for name, value in [*numbers.items(), *((name, x) for name, xs in spread.items() for x in xs)]:
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"{name} is {value} at step {step} of {self.step}",
                    where=f"stage {stage_of(self.step)}, logged to {self.folder / 'metrics.jsonl'}",
                    hints=[
                        f"a smaller learning rate is the usual cure: {stage_of(self.step)}.learning_rate=...",
                        "in bfloat16, see whether it also happens with model.dtype=float32",
                    ],
                )
        seconds = round(monotonic() - self._started, 3)
        counted = {name: histogram(xs) for name, xs in spread.items() if xs}
        self.streams.append("metrics.jsonl", {"step": step, "time": seconds, **numbers, **counted})
        for mirror in self._mirrors:
            mirror.follow({"mem/peak_mb": peak_rss_mb(), "time/tokens_per_second": self.tokens / max(seconds, 1e-3)})

    def sample(self, row: Mapping[str, Any]) -> None:
        """Append one generated text with its scores to samples.jsonl, exactly as it was generated."""
        self.streams.append("samples.jsonl", dict(row))

    def ledger_of(self, part: str, ids: Sequence[str | Sequence[str]], *, draws: int, epochs: int) -> None:
        """Open a part of the ledger: the samples, and how many of them an epoch takes, in turn and round and round."""
        dumps, write = partial(json.dumps, ensure_ascii=False), partial(self.streams.write, "ledger.jsonl")
        write(f'{{"part": {dumps(part)}, "ids": [')
        for first in range(0, len(ids), TOGETHER):  # of a million samples the names would be 70 MB
            write((", " if first else "") + dumps(list(ids[first : first + TOGETHER]))[1:-1])
        write(f'], "draws": {draws}, "epochs": {epochs}}}\n')

    def ledger(self, part: str, *, step: int, epoch: int, rows: Sequence[int]) -> None:
        """One optimizer step was made, from these draws: number d is sample d modulo their number. Steps from 1 on."""
        self.streams.append("ledger.jsonl", {"part": part, "step": step, "epoch": epoch, "rows": list(rows)})

    def count(self, tokens: int, decoder: str) -> None:
        """Tokens that were generated, and by which decoder."""
        self.tokens += tokens
        self.decoders.add(decoder)

    def seconds(self) -> float:
        """Since it began, in all lives together."""
        return monotonic() - self._started

    def restore(self, save: Path, *, tokens: int, seconds: float) -> None:
        """Put the lines back to those in a save, and the counts to what they were then."""
        self.streams.restore(save)
        for mirror in self._mirrors:
            mirror.rewind()
        self.tokens = self._before = tokens
        self._started = monotonic() - seconds

    def say(self, text: str) -> None:
        """Print one line, above the bar if there is one; whatever would steer the terminal is taken out."""
        self.console.print(plain(redact(text)), markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self, total: int, what: str) -> Iterator[Progress]:
        """Count a loop: a bar with its estimated end on a terminal; elsewhere a line at start, end and every 30 s."""
        name = f"[{self.step}]" if what in (self.step, stage_of(self.step)) else f"[{self.step}] {plain(what)}"
        loop = _Loop(total, lambda: self.tokens - self._before)
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            with self._bar(name, loop) as bar:
                yield bar
        else:
            lines = _Lines(self.say, name, loop)
            try:
                yield lines
            finally:
                lines.end()

    @contextmanager
    def _bar(self, name: str, loop: _Loop) -> Iterator[Progress]:
        # One live display for nested loops: the outermost starts and stops it.
        outermost = self._bars is None
        if self._bars is None:
            self._bars = _rich_bars(self.console)
            self._bars.start()
        bars = self._bars
        try:
            yield _Bar(bars, bars.add_task(name, total=loop.total, tail=""), loop)
        finally:
            if outermost:
                self._stop_bars()

    def _stop_bars(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def close(self, *, finished: bool = False) -> None:
        """Finish the bar, the files and their copies; a second call does nothing."""
        # A loop that an exception left without closing its bar would otherwise close it when the interpreter ends.
        self._stop_bars()
        self.streams.close()
        for mirror in self._mirrors:
            mirror.close(finished=finished)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close(finished=kind is None)


class _Loop:
    """How far a loop has come, what it showed last, and what it costs."""

    def __init__(self, total: int, tokens: Callable[[], int]) -> None:
        self.total = total
        self.done = 0
        self._shown: dict[str, float] = {}
        self._tokens, self._tokens_before = tokens, tokens()
        self._started = monotonic()

    def count(self, n: int, shown: Mapping[str, float]) -> None:
        self.done += n
        self._shown |= shown

    def time(self) -> str:
        """What is left at the pace so far, evaluations and saves included; at the end what it took."""
        elapsed = monotonic() - self._started
        if self.done >= self.total:
            return f"in {duration(elapsed)}"
        return f"eta {duration((self.total - self.done) * elapsed / max(self.done, 1))}"

    def figures(self) -> str:
        """The newest of each figure."""
        return "".join(f"  {name} {value:.4g}" for name, value in self._shown.items())

    def cost(self) -> str:
        """Tokens a second, where it counts them, and the process's memory at its fullest."""
        tokens, seconds = self._tokens() - self._tokens_before, monotonic() - self._started
        if tokens <= 0 or seconds <= 0:
            return ""
        return f"  {tokens / seconds:,.0f} tokens/s  peak {peak_rss_mb():,.0f} MB"


class _Lines:
    """Progress in a log file: every line stands alone and can be searched for."""

    def __init__(self, say: Callable[[str], None], name: str, loop: _Loop) -> None:
        self._say, self._name, self._loop = say, name, loop
        self._started = self._last = monotonic()
        say(self._count())

    def advance(self, n: int = 1, **shown: float) -> None:
        loop = self._loop
        loop.count(n, shown)
        now = monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES and 0 < loop.done < loop.total:
            self._last = now
            self._say(f"{self._count()}  {100 * loop.done // loop.total}%  {loop.time()}{loop.figures()}{loop.cost()}")

    def end(self) -> None:
        """The last line: how far it came, in what time."""
        self._say(
            f"{self._count()}  in {duration(monotonic() - self._started)}{self._loop.figures()}{self._loop.cost()}"
        )

    def _count(self) -> str:
        return f"{self._name} {self._loop.done}/{self._loop.total}"


class _Bar:
    """Progress on a terminal: one line of a live display."""

    def __init__(self, bars: RichProgress, task: TaskID, loop: _Loop) -> None:
        self._bars, self._task, self._loop = bars, task, loop

    def advance(self, n: int = 1, **shown: float) -> None:
        self._loop.count(n, shown)
        # On a narrow terminal the cost would take the bar's place.
        cost = self._loop.cost() if self._bars.console.width >= 100 else ""
        self._bars.update(self._task, advance=n, tail=self._loop.time() + self._loop.figures() + cost)


def _rich_bars(console: Console) -> RichProgress:
    name = TextColumn("{task.description}", markup=False)
    tail = TextColumn("{task.fields[tail]}", markup=False)
    return RichProgress(name, BarColumn(bar_width=24), MofNCompleteColumn(), tail, console=console)
