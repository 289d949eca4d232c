"""The figures of a report, each small enough for a phone, as SVG.

A variant has the same color in all of them.
"""

import io
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from .report_curves import mean

# Okabe and Ito's colors, without yellow, which is hard to see on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")  # after the last color they begin anew, in other dashes
BACKGROUND = "0.45"
WIDTH = 3.6  # inches; shown 320 to 460 pixels wide, a letter of 9 points has 11 pixels or more
STYLE = {
    "font.size": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "svg.fonttype": "path",  # the same on every machine
    "svg.hashsalt": "report",
}


class Line(NamedTuple):
    """What one line of a figure shows.

    Attributes:
        curves (list[Curve]): one for each seed.
        color, dash (str): as Matplotlib names them.
    """

    curves: list
    color: str
    dash: str = "-"


def color_of(n):
    """tuple: color and dash of variant ``n``, counted from 0."""
    return COLORS[n % len(COLORS)], DASHES[n // len(COLORS) % len(DASHES)]


def svg(figure):
    """str: the SVG of a Figure."""
    out = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _axes(height=2.5, **labels):
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        axes.set(**labels)
        axes.grid(True)
    return figure, axes


def limits(lines: list[Line]) -> tuple[float, float] | None:
    """From the smallest to the largest value of several lines, with room.

    Diverged runs count only where there are no others.

    Args:
        lines: of values above 0.

    Returns:
        None without a line.
    """
    curves = [curve for line in lines for curve in line.curves]
    curves = [curve for curve in curves if not curve.diverged] or curves
    if not curves:
        return None
    return min(c.y.min() for c in curves) / 1.3, max(c.y.max() for c in curves) * 1.3


def courses(lines: list[Line], ylabel: str, ylim: tuple[float, float]) -> Figure:
    """Lines over the iterations on a logarithmic axis: bold the mean, faint each seed.

    A cross ends the line of a run that diverged, at the edge where it has left the axes.

    Args:
        lines: of values above 0.
        ylabel:
        ylim: the same for figures that are to be compared.
    """
    figure, axes = _axes(xlabel="iteration", ylabel=ylabel)
    axes.set(yscale="log", ylim=ylim)
    _draw(axes, lines)
    for line in lines:
        for x, y, diverged in line.curves:
            if diverged:
                end = np.clip(y[-1:], *ylim)
                style = {"ms": 8, "mew": 2, "clip_on": False, "zorder": 4}
                axes.plot(x[-1:], end, "x", color=line.color, **style)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ratio = ylim[1] / ylim[0]
    subs = range(1, 10) if ratio < 5 else (1, 2, 5) if ratio < 30 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=7))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    return figure


def precision_recall(lines):
    """Figure: precision over recall, both from 0 to 1: bold the mean, faint each seed."""
    figure, axes = _axes(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    _draw(axes, lines)
    return figure


def score_histogram(histogram: dict, color: str, ylim: tuple[float, float]) -> Figure:
    """Foreground (filled, in color) and background (grey) over the score, both axes logarithmic.

    Args:
        histogram: of :func:`report_curves.histogram`.
        color: of the variant.
        ylim: samples of a bin.
    """
    edges = 10.0 ** histogram["edges"]
    figure, axes = _axes(xlabel="score", ylabel="samples", xscale="log", yscale="log", ylim=ylim)
    style = {"baseline": ylim[0], "fill": True, "lw": 1.5}
    axes.stairs(histogram["background"], edges, fc="0.85", ec=BACKGROUND, **style)
    axes.stairs(histogram["foreground"], edges, fc=f"{color}80", ec=color, **style)
    axes.set_xlim(edges.min(), edges.max())
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return figure


def scores_of_seeds(rows: list[tuple], xlabel: str) -> Figure:
    """A dot for each seed and a bar for the mean, one variant below the other.

    Args:
        rows: name, color, values, and values at the default threshold (hollow).
        xlabel: with the unit.
    """
    figure, axes = _axes(0.7 + 0.45 * len(rows), xlabel=xlabel)
    for y, (name, color, values, at_default) in enumerate(rows):
        text = name if values else f"{name}: no result"
        # A name above its dots needs no room beside the axes.
        axes.text(
            *(0.01, y - 0.2, text),
            transform=axes.get_yaxis_transform(),
            fontsize=9,
            va="bottom",
            parse_math=False,
        )
        axes.plot(values, [y] * len(values), "o", color=color, alpha=0.7, mew=0, ms=7)
        axes.plot(at_default, [y] * len(at_default), "D", mec=color, mfc="none", ms=6)
        if values:
            axes.plot([np.mean(values)] * 2, [y - 0.18, y + 0.18], color=color, lw=2)
    axes.set(ylim=(len(rows) - 0.6, -0.8), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    return figure


def _draw(axes, lines):
    for line in lines:
        for curve in line.curves if line.curves[1:] else []:
            axes.plot(curve.x, curve.y, line.dash, color=line.color, lw=0.8, alpha=0.35)
        middle = mean(line.curves)
        marker = "." if len(middle.x) == 1 else None  # one point draws no line
        axes.plot(middle.x, middle.y, line.dash, color=line.color, lw=1.8, marker=marker, zorder=3)
