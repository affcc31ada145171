"""Charts as inline SVG: no pyplot, no files, and colours that follow the page's light or dark theme.

A chart is about 360 px wide and is shown at that size, so that its text is as large as the page's on a phone and on a
desk. Every line has its own marker and dash, every second bar a hatch: no chart needs colour to be read.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, ScalarFormatter

WIDTH, HEIGHT = 3.75, 2.5
MOST_POINTS = 150
# In letters of the legend's size, about 0.055 inches each: what fits above the axes, and what a line's sample takes.
LEGEND_LETTERS, HANDLE_LETTERS = 60, 7
LEGEND_ROW, TICK_LETTER = 0.16, 0.062  # inches
ROW = 0.36  # inches of a distribution
LONGEST_NAME = 20  # letters beside it

# Stand-ins that no other part of a chart uses; the finished SVG names the page's CSS variables in their place.
_COLOURS = ("#0000a1", "#0000a2", "#0000a3", "#0000a4", "#0000a5", "#0000a6")
_MUTED, _GRID = "#0000b1", "#0000b2"
_THEME = {colour: f"var(--s{i}, #4477aa)" for i, colour in enumerate(_COLOURS)} | {
    _MUTED: "var(--muted, #808080)",
    _GRID: "var(--grid, #c0c0c0)",
}
_MARKERS = "os^Dvp"
_DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (8, 2)), (0, (3, 1)))
_HATCHES = ("", "////", "....", "xxxx")
_STYLE = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's font
    "svg.hashsalt": "rlhf",  # the same numbers draw the same bytes
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 8,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _MUTED,
    "text.color": _MUTED,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.2,
}


@dataclass(frozen=True, slots=True)
class Series:
    """One named line: y over x, of equal length, and the 95% interval of every y where they are known."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    intervals: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, with its 95% interval where it is known."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """One named distribution: counts between edges, and the 5%, 25%, 50%, 75% and 95% quantiles."""

    name: str
    edges: Sequence[float]
    counts: Sequence[int]
    quantiles: tuple[float, float, float, float, float]


def lines(
    key: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    scale: Literal["linear", "powers of two", "even"] = "linear",
    diagonal: bool = False,
) -> str:
    """Lines over a common axis; `key` makes the SVG's ids unique on the page; `even` puts its x equally far apart."""
    names = [s.name for s in series] if len(series) > 1 else []
    known = sorted({v for s in series for v in s.x})
    places = {v: float(i) for i, v in enumerate(known)} if scale == "even" else {}
    with _chart(key, legend=names) as (axes, svg):
        if diagonal:
            ends = [v for s in series for v in (*s.x, *s.y)]
            axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=_MUTED, linewidth=0.8, linestyle=":")
        for i, s in enumerate(series):
            xs, ys = _thinned([places.get(v, v) for v in s.x], s.y)
            if s.intervals:
                axes.vlines(xs, *zip(*s.intervals, strict=True), color=_COLOURS[i % 6], linewidth=0.8)
            axes.plot(
                xs, ys, label=s.name, color=_COLOURS[i % 6], linestyle=_DASHES[i % 6], linewidth=1.4, **_dots(i, xs)
            )
        if scale == "even":
            axes.set_xticks(range(len(known)), [f"{v:g}" for v in known])
        elif scale == "powers of two":
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(known))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        _finish(axes, x, y, legend=names)
    return svg[0]


def bars(key: str, groups: Sequence[str], series: Mapping[str, Sequence[Bar | None]], *, y: str, chance: float) -> str:
    """Grouped bars from 0 to 1 with intervals, and a dotted line at what guessing would reach."""
    width = 0.8 / max(1, len(series))
    names = list(series) if len(series) > 1 else []
    with _chart(key, legend=names) as (axes, svg):
        for i, (name, values) in enumerate(series.items()):
            shown = [(g - 0.4 + width * (i + 0.5), bar) for g, bar in enumerate(values) if bar is not None]
            colour = _COLOURS[i % 6]
            axes.bar(
                [at for at, _ in shown],
                [bar.value for _, bar in shown],
                width * 0.9,
                label=name,
                facecolor=(0, 0, 0, 0) if i % 2 else colour,
                edgecolor=colour,
                hatch=_HATCHES[i % 4],
                linewidth=0.8,
            )
            for at, bar in shown:
                if bar.interval is not None:
                    axes.plot([at, at], bar.interval, color=_MUTED, linewidth=1.2, solid_capstyle="butt")
                top = bar.interval[1] if bar.interval else bar.value
                axes.annotate(
                    f"{bar.value:.2f}", (at, top), (0, 2), textcoords="offset points", ha="center", fontsize=7
                )
        axes.axhline(chance, color=_MUTED, linewidth=0.8, linestyle=":")
        axes.set_xticks(range(len(groups)), groups)
        axes.tick_params(axis="x", length=0)
        axes.set_ylim(0, 1.08)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        _finish(axes, "", y, legend=names)
    return svg[0]


def scatter(key: str, points: Mapping[str, tuple[float, float]], *, x: str, y: str) -> str:
    """Named points joined in order, so that the path from the first to the last can be followed."""
    with _chart(key, height=3.0) as (axes, svg):
        axes.plot(*zip(*points.values(), strict=True), color=_MUTED, linewidth=0.7)
        for i, (a, b) in enumerate(points.values()):
            axes.plot([a], [b], color=_COLOURS[i % 6], marker=_MARKERS[i % 6], markersize=6, linestyle="")
        axes.margins(0.18)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.grid(visible=True, axis="both")
        _finish(axes, x, y, legend=[])
        _label_apart(axes, points)
    return svg[0]


def ridges(key: str, shapes: Sequence[Shape], *, x: str) -> str:
    """Distributions one under another over a common axis, each as high as its fullest bin, with its quantiles below."""
    with _chart(key, height=0.5 + ROW * len(shapes)) as (axes, svg):
        for row, shape in enumerate(shapes):
            heights = [row - 0.7 * count / max(shape.counts) for count in shape.counts]
            axes.stairs(heights, shape.edges, baseline=row, fill=True, color=_COLOURS[0], alpha=0.4, linewidth=0)
            axes.stairs(heights, shape.edges, baseline=row, color=_COLOURS[0], linewidth=0.8)
            lowest, low, median, high, highest = shape.quantiles
            mark: dict[str, Any] = {"color": _COLOURS[1], "solid_capstyle": "butt", "clip_on": False}
            axes.plot([lowest, highest], [row + 0.15] * 2, linewidth=0.9, **mark)
            axes.plot([low, high], [row + 0.15] * 2, linewidth=2.8, **mark)
            axes.plot([median], [row + 0.15], marker="o", markersize=4.5, **mark)
        # Names of one family differ at their ends.
        names = [s.name if len(s.name) <= LONGEST_NAME else f"{s.name[:9]}…{s.name[-10:]}" for s in shapes]
        axes.set_yticks(range(len(shapes)), names)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(shapes) - 0.65, -0.8)
        axes.set_xlim(shapes[0].edges[0], shapes[0].edges[-1])
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        _finish(axes, x, "", legend=[])
    return svg[0]


def _label_apart(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write each name beside its point, moved up or down until it covers no earlier name or point."""
    cast(Figure, axes.figure).draw_without_rendering()  # places exist only once the layout is made
    spots = {name: tuple(axes.transData.transform(at)) for name, at in points.items()}
    left, right = axes.bbox.x0, axes.bbox.x1
    taken = [(px - 5.0, py - 5.0, px + 5.0, py + 5.0) for px, py in spots.values()]
    for name, (px, py) in spots.items():
        wide = 5.6 * len(name)
        x0 = px + 7 if px + 7 + wide < right else max(left, px - 7 - wide)
        # Level with the point if nothing is there, else the nearest free place above or below it.
        for shift in sorted(range(-66, 67, 3), key=abs):
            box = (x0, py + shift - 5, x0 + wide, py + shift + 5)
            if not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
                break
        taken.append(box)
        axes.annotate(
            name, points[name], ((x0 - px) * 0.72, shift * 0.72), textcoords="offset points", va="center", fontsize=7.5
        )


@contextmanager
def _chart(key: str, height: float = HEIGHT, legend: Sequence[str] = ()) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on; once the block is left, the list holds the SVG. A legend of many rows makes the chart taller."""
    svg: list[str] = []
    height += LEGEND_ROW * max(0, math.ceil(len(legend) / _columns(legend)) - 2)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height))
        FigureCanvasSVG(figure)
        yield figure.add_subplot(), svg
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg.append(_inline(file.getvalue(), key))


def _inline(svg: str, key: str) -> str:
    """The `<svg>` element alone, hidden from screen readers (the page says its text), with ids of its own."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid=")', rf"\1{key}-", body)
    body = re.sub(r"(url\(#|href=\"#)", rf"\1{key}-", body)
    body = re.sub("|".join(_THEME), lambda found: _THEME[found[0]], body)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
    return body.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1).strip()


def _columns(legend: Sequence[str]) -> int:
    """How many names fit beside one another above the axes, three at most; wider, a legend would leave them no room."""
    longest = max(map(len, legend), default=0)
    return max(1, min(3, LEGEND_LETTERS // (longest + HANDLE_LETTERS)))


def _finish(axes: Axes, x: str, y: str, *, legend: Sequence[str]) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if isinstance(formatter := axes.yaxis.get_major_formatter(), ScalarFormatter):
        formatter.set_useOffset(False)  # the offset would stand above the axes, where there is no room
    _make_room(axes, x, legend)
    if legend:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=_columns(legend), borderaxespad=0.1)


def _make_room(axes: Axes, x: str, legend: Sequence[str]) -> None:
    """Margins as wide as what stands in them, in inches: counted in letters, which is faster than drawing twice."""
    figure = cast(Figure, axes.figure)
    width, height = figure.get_size_inches()
    ticks = axes.yaxis.get_major_formatter().format_ticks(list(axes.yaxis.get_majorticklocs()))
    names = [text.get_text() for text in axes.get_xticklabels()]
    rows = math.ceil(len(legend) / _columns(legend)) if legend else 0
    left = 0.30 + TICK_LETTER * max(map(len, ticks), default=0)
    bottom = 0.14 + 0.13 * (1 + max((name.count("\n") for name in names), default=0)) + (0.16 if x else 0)
    top = 0.08 + LEGEND_ROW * rows
    figure.subplots_adjust(left / width, bottom / height, 1 - 0.1 / width, 1 - top / height)


def _dots(i: int, x: Sequence[float]) -> dict[str, Any]:
    """Markers where the points are few, and about eight on a long line."""
    return {"marker": _MARKERS[i % 6], "markersize": 3.5, "markevery": max(1, math.ceil(len(x) / 8))}


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most MOST_POINTS points: means of neighbours, so that a noisy curve keeps its level."""
    every = math.ceil(len(x) / MOST_POINTS)
    if every <= 1:
        return list(x), list(y)
    cuts = range(0, len(x), every)
    return [_mean(x[i : i + every]) for i in cuts], [_mean(y[i : i + every]) for i in cuts]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
