"""The precision-recall curves of a validation set in one picture, with the picked thresholds.

Legend: K classes, T different scores of a class.
"""

import os
import textwrap

import numpy as np
from matplotlib.figure import Figure

from .best_threshold import BestThreshold, precision_recall
from .matching import Matches, all_classes

NUM_NAMED = 12  # classes that a legend beside the axes has room for
NUM_COLORS = 6  # of Matplotlib's cycle, well apart; the next six are dashed
WIDTH = 28  # characters of a name in the legend
LABEL = (0.22, 0.14)  # of the axes: width and height of the label, somewhat generously
GAP = 0.12  # of the axes, between a point and the middle of its label


def plot_precision_recall(by_class: dict[str, Matches], picked: BestThreshold, output_png: str):
    """Plots the curve of all classes together, those of the classes, and a point on each.

    Of more than `NUM_NAMED` classes, those with the most objects get a color and a line in the
    legend, as their curves are the least jagged and weigh most in the curve of all; the others
    are thin and grey. The legend also counts the classes that have no curve.

    Args:
        by_class: K entries by class name.
        picked: the thresholds to mark, picked from `by_class`.
        output_png: written; the folder is made.
    """
    curves = {name: precision_recall(*matches) for name, matches in by_class.items()}
    drawn = [name for name, curve in curves.items() if len(curve["recall"])]
    most = sorted(drawn, key=lambda name: -by_class[name].num_ground_truth)[:NUM_NAMED]
    named = [name for name in drawn if name in most]  # in the order of the classes again
    others = [name for name in drawn if name not in most]
    absent = [name for name in curves if name not in drawn]

    figure = Figure(figsize=(9, 5.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    entries = []
    together = precision_recall(*all_classes(by_class))
    if len(together["recall"]):
        line = _draw(axes, together, vars(picked), "black", lw=3, size=10, zorder=4)
        entries.append((line, f"all classes: {_threshold(picked.threshold)}"))
        if picked.threshold is not None:
            _label(axes, together, picked)
    else:
        axes.text(0.5, 0.5, "no detection or no object: no curve", ha="center", va="center")
    for n, name in enumerate(named):
        style = "-" if n < NUM_COLORS else "--"
        row = picked.per_class[name]
        line = _draw(axes, curves[name], row, f"C{n % NUM_COLORS}", lw=1.2, size=6, ls=style)
        entries.append((line, f"{_short(name)}: {_threshold(row['threshold'])}"))
    for name in others:
        row = picked.per_class[name]
        line = _draw(axes, curves[name], row, "0.8", lw=0.7, size=4, zorder=1)
    if others:
        entries.append((line, f"{len(others)} classes with fewer objects"))
    if absent:
        nothing = axes.plot([], [], ls="none")[0]
        which = _short(absent[0]) if len(absent) == 1 else f"{len(absent)} classes"
        entries.append((nothing, f"no object or no detection: {which}"))
    if picked.wanted_precision is not None:
        line = axes.axhline(picked.wanted_precision, color="0.4", lw=1, ls=":", zorder=1)
        entries.append((line, f"wanted precision {picked.wanted_precision:g}"))

    aim = "threshold of best F1"
    if picked.wanted_precision is not None:
        aim = "lowest threshold of the wanted precision"
    axes.set_title(f"Points: {aim}, at IoU {picked.iou:g}", fontsize=10)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.grid(True, alpha=0.3)
    if entries:
        axes.legend(
            *zip(*entries),
            title="class: threshold",
            loc="upper left",
            bbox_to_anchor=(1.01, 1),
            fontsize=8,
            frameon=False,
        )
    os.makedirs(os.path.dirname(os.path.abspath(output_png)), exist_ok=True)
    figure.savefig(output_png)


def _draw(axes, curve, row, color, size, zorder=2, **style):
    """The curve (T,) and, if a threshold was picked, its point; returns the line."""
    single = "." if len(curve["recall"]) == 1 else None  # one score draws no line
    x, y = curve["recall"], curve["precision"]
    (line,) = axes.plot(x, y, color=color, zorder=zorder, marker=single, **style)
    if row["threshold"] is not None:
        # A point at precision or recall 1 lies half outside the axes.
        axes.plot(
            [row["recall"]],
            [row["precision"]],
            marker="o",
            ms=size,
            color="0.6" if color == "0.8" else color,
            mec="white",
            mew=0.1 * size,
            clip_on=False,
            zorder=zorder + 2,
        )
    return line


def _label(axes, curve, picked):
    """What the threshold of all classes gives, in words beside its point."""
    x, y = picked.recall, picked.precision
    rows = [row for row in picked.per_class.values() if row["threshold"] is not None]
    points = np.array([[row["recall"], row["precision"]] for row in rows]).reshape(-1, 2)
    course = np.stack([curve["recall"], curve["precision"]], axis=1)

    def cost(side):
        """Is it outside the axes, does it hide the curve, and how many points of classes?"""
        low = np.array([x + side[0] * GAP - LABEL[0] * (side[0] < 0), y + side[1] * GAP])
        low[1] -= LABEL[1] / 2
        high = low + LABEL
        hides, hidden = (((low < p) & (p < high)).all(axis=1).sum() for p in (course, points))
        return min(low) < 0 or max(high) > 1, hides > 0, hidden

    side = min([(-1, -1), (1, -1), (1, 1), (-1, 1)], key=cost)
    axes.annotate(
        f"threshold {picked.threshold:.4f}\nprecision {y:.3f}\nrecall {x:.3f}",
        (x, y),
        xytext=(x + side[0] * GAP, y + side[1] * GAP),
        ha="right" if side[0] < 0 else "left",
        va="center",
        fontsize=9,
        bbox=dict(boxstyle="round", fc="white", ec="0.6", alpha=0.9),
        arrowprops=dict(arrowstyle="-", color="0.4"),
        zorder=9,
    )


def _threshold(value):
    return "none" if value is None else f"{value:.4f}"


def _short(name):
    """A class name that neither fills the picture nor is read as a formula."""
    return textwrap.shorten(name, WIDTH, placeholder="...").replace("$", r"\$")
