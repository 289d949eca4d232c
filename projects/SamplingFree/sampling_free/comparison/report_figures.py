"""The figures of a report, each small enough for a phone, as SVG."""

import base64
import io
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

# Okabe and Ito's colors, without yellow, which is hard to see on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")  # after the last color they begin anew, in other dashes
WIDTH = 3.6  # inches; shown 320 to 460 pixels wide, a letter of 9 points has 11 pixels or more
STYLE = {
    **{f"{name}.labelsize": 9 for name in ("axes", "xtick", "ytick")},
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.fonttype": "path",  # the same on every machine
    "svg.hashsalt": "report",
}


class Curve(NamedTuple):
    """Finite points of one run; a diverged one ended with a loss that is not finite."""

    x: np.ndarray
    y: np.ndarray
    diverged: bool = False


class Line(NamedTuple):
    """The curves of all seeds, with the color and dash as Matplotlib names them."""

    curves: list[Curve]
    color: str
    dash: str = "-"


class Image(NamedTuple):
    """An image within the page: its caption and its data as a URL."""

    caption: str
    source: str


def color_of(n: int) -> tuple[str, str]:
    """Color and dash of variant ``n``, counted from 0, the same in all figures."""
    return COLORS[n % len(COLORS)], DASHES[n // len(COLORS) % len(DASHES)]


def embedded(caption: str, kind: str, data: bytes) -> Image:
    """An image from the bytes of its file; ``kind`` is "jpeg" or "svg+xml"."""
    return Image(caption, f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def svg(caption: str, figure: Figure) -> Image:
    """The figure as SVG."""
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return embedded(caption, "svg+xml", out.getvalue())


def mean(curves: list[Curve]) -> Curve:
    """The mean at each x that a curve has; diverged runs count only where there are no others."""
    values = {}
    for curve in [c for c in curves if not c.diverged] or curves:
        for x, y in zip(curve.x, curve.y):
            values.setdefault(x, []).append(y)
    return Curve(*np.array([(x, np.mean(values[x])) for x in sorted(values)]).T)


def limits(lines: list[Line]) -> tuple[float, float]:
    """Smallest and largest value above 0, with room; diverged runs count as in :func:`mean`."""
    curves = [curve for line in lines for curve in line.curves]
    y = np.concatenate([c.y for c in curves if not c.diverged] or [c.y for c in curves])
    return y.min() / 1.3, y.max() * 1.3


def courses(lines: list[Line], ylabel: str, ylim: tuple[float, float]) -> Figure:
    """Lines of values above 0 over the iterations; a cross ends that of a run that diverged."""
    figure, axes = _axes(xlabel="iteration", ylabel=ylabel, yscale="log", ylim=ylim)
    _draw(axes, lines)
    for line in lines:
        for x, y, _ in [curve for curve in line.curves if curve.diverged]:
            style = {"ms": 8, "mew": 2, "clip_on": False, "zorder": 4}
            axes.plot(x[-1:], np.clip(y[-1:], *ylim), "x", color=line.color, **style)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ratio = ylim[1] / ylim[0]
    subs = range(1, 10) if ratio < 5 else (1, 2, 5) if ratio < 30 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=7))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    return figure


def precision_recall(lines: list[Line]) -> Figure:
    """Precision over recall, both from 0 to 1."""
    figure, axes = _axes(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    _draw(axes, lines)
    return figure


def score_histogram(histogram: dict, color: str, ylim: tuple[float, float]) -> Figure:
    """Foreground in color and background in grey over the score, both axes logarithmic."""
    edges = 10.0 ** histogram["edges"]
    figure, axes = _axes(xlabel="score", ylabel="samples", xscale="log", yscale="log", ylim=ylim)
    for part, face, edge in ("background", "0.85", "0.45"), ("foreground", f"{color}80", color):
        axes.stairs(histogram[part], edges, baseline=ylim[0], fill=True, fc=face, ec=edge, lw=1.5)
    axes.set_xlim(edges.min(), edges.max())
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return figure


def scores_of_seeds(rows: list[tuple]) -> Figure:
    """A dot for each seed and a bar for the mean, one variant below the other.

    Args:
        rows: name, color, AP of each seed, and AP at the default threshold (hollow).
    """
    figure, axes = _axes(0.7 + 0.45 * len(rows), xlabel="AP in percent")
    for y, (name, color, values, at_default) in enumerate(rows):
        text = name if values else f"{name}: no result"
        # A name above its dots needs no room beside the axes.
        where = {"transform": axes.get_yaxis_transform(), "va": "bottom"}
        axes.text(0.01, y - 0.2, text, parse_math=False, fontsize=9, **where)
        axes.plot(values, [y] * len(values), "o", color=color, alpha=0.7, mew=0, ms=7)
        axes.plot(at_default, [y] * len(at_default), "D", mec=color, mfc="none", ms=6)
        if values:
            axes.plot([np.mean(values)] * 2, [y - 0.18, y + 0.18], color=color, lw=2)
    axes.set(ylim=(len(rows) - 0.6, -0.8), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    return figure


def _axes(height=2.5, **settings):
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        return figure, figure.subplots(subplot_kw=settings)


def _draw(axes, lines):
    """Each seed faint, the mean bold."""
    for line in lines:
        for curve in line.curves if line.curves[1:] else []:
            axes.plot(curve.x, curve.y, line.dash, color=line.color, lw=0.8, alpha=0.35)
        middle = mean(line.curves)
        marker = "." if len(middle.x) == 1 else None  # one point draws no line
        axes.plot(middle.x, middle.y, line.dash, color=line.color, lw=1.8, marker=marker, zorder=3)
