#!/usr/bin/env python
"""Draws the pictures of docs/evidence.md from the records in results/evidence/.

    python tools/evidence_figures.py [--records FOLDER] [--output FOLDER]

rates_DATA.svg: AP on val over the learning rate, a curve for each variant. ratio_DATA.svg: r while
it trains, of each guide. scores_DATA.svg: mean score of foreground and background.
investigation.svg: the size of the classification gradient from each prior.
"""

import argparse
import os

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import evidence_plan as plan
from evidence_names import DATA, title, words_of
from sampling_free.cli import one_line_errors
from sampling_free.comparison.records import read_records
from sampling_free.comparison.report_curves import course
from sampling_free.comparison.report_figures import STYLE, color_of, svg

FOLDER = "docs/evidence"
SIZE = (8.0, 3.4)  # inches
GUIDES = (plan.FULL, plan.GRADIENT, plan.FROZEN)
TELLING = (plan.FULL, plan.GRADIENT, plan.BCE, plan.FOCAL)
CLASSES = "cls"  # the loss term of RetinaNet, in the monitor's names
# Of the investigation: each prior without a constant, and what is to be compared with it.
PRIORS = [f"{plan.BCE}:model.prior={prior},model.guide=1" for prior in plan.WEIGHTS]


def figure(**labels):
    """A Figure with a legend's room on the right, and its axes."""
    with matplotlib.rc_context(STYLE):
        made = Figure(figsize=SIZE, layout="constrained")
        axes = made.subplots()
        axes.set(**labels)
        axes.grid(True)
    return made, axes


def with_legend(made, axes):
    """The figure, or None where nothing was drawn."""
    if not axes.lines:
        return None
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    handles, labels = axes.get_legend_handles_labels()
    with matplotlib.rc_context(STYLE):
        made.legend(handles, [x.replace("`", "") for x in labels], loc="outside right upper")
    return made


def rates(records, data):
    """AP over the grid of rates, one seed; what diverged is a cross at 0."""
    made, axes = figure(xlabel="learning rate", ylabel="AP on val", xscale="log")
    axes.set_xticks(plan.RATES, [f"{rate:g}" for rate in plan.RATES])
    axes.minorticks_off()
    words = [w for w in words_of(records, data) if not w.startswith(f"{plan.FOCAL}:")]
    for n, word in enumerate(words):
        found = {r["learning_rate"]: r.get("bbox/AP") for r in plan.tried(records, data, word)}
        points = [(rate, found[rate]) for rate in plan.RATES if rate in found]
        if not points:
            continue
        color, dash = color_of(n)
        aps = [np.nan if ap is None else ap for _, ap in points]
        axes.plot(*zip(*points), dash, color=color, marker=".", label=title(word))
        lost = [rate for (rate, _), ap in zip(points, aps) if np.isnan(ap)]
        axes.plot(lost, [0] * len(lost), "x", color=color)
    return with_legend(made, axes)


def courses(groups, key, ylabel):
    """The median over the seeds of numbers that were logged while it trained, logarithmic.

    Args:
        groups (dict[str, list[dict]]): records by what a line is called.
        key (str or dict[str, str]): of the course, or several with a dash each.
        ylabel (str):

    Returns:
        Figure or None: None where nothing was logged.
    """
    made, axes = figure(xlabel="iteration", ylabel=ylabel, yscale="log")
    keys = {key: "-"} if isinstance(key, str) else key
    for n, (name, runs) in enumerate(groups.items()):
        for k, dash in keys.items():
            curves = [c for c in (course(run, k) for run in runs) if c is not None]
            if not curves:
                continue
            color = color_of(n)[0]
            label = name if k == next(iter(keys)) else None
            whole = [c for c in curves if not c.diverged] or curves[:1]
            shared = sorted(set.intersection(*(set(c.x) for c in whole)))
            at = [[dict(zip(c.x, c.y))[x] for x in shared] for c in whole]
            axes.plot(shared, np.median(at, axis=0), dash, color=color, label=label)
            for c in curves:
                if c.diverged:
                    axes.plot(c.x[-1:], c.y[-1:], "x", color=color, ms=8, mew=2)
    return with_legend(made, axes)


def ratio(records, data):
    groups = {title(w): plan.finals(records, data, w) for w in GUIDES}
    groups |= {f"{title(w)}, long": plan.finals(records, data, w, long=True) for w in GUIDES}
    return courses(groups, "guide/r", "r")


def scores(records, data):
    groups = {title(w): plan.finals(records, data, w) for w in TELLING}
    foreground, background = (f"monitor/score/{CLASSES}/{x}ground" for x in ("fore", "back"))
    keys = {foreground: "-", background: "--"}
    return courses(groups, keys, "mean score: foreground (-), background (--)")


def gradients(records, data):
    groups = {title(w): plan.finals(records, data, w) for w in TELLING}
    return courses(groups, f"monitor/ratio/{CLASSES}", "classification / localisation gradient")


def investigation(records):
    mine = plan.investigated(records)
    words = [*PRIORS, plan.FOCAL, plan.FULL]
    groups = {title(w): [r for r in mine if plan.word_of(r) == w] for w in words}
    return courses(groups, f"monitor/outputs/{CLASSES}", "classification gradient at the outputs")


def figures(records):
    """dict[str, Figure]: by file name, those of which there is something to draw."""
    found = {"investigation.svg": investigation(records)}
    for data in DATA:
        for draw in (rates, ratio, scores, gradients):
            found[f"{draw.__name__}_{data}.svg"] = draw(records, data)
    return {name: made for name, made in found.items() if made is not None}


@one_line_errors
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", default=plan.RECORDS, help=f"default: {plan.RECORDS}")
    parser.add_argument("--output", default=FOLDER, help=f"default: {FOLDER}")
    args = parser.parse_args()
    os.makedirs(args.output, exist_ok=True)
    for name, made in figures(read_records(args.records)).items():
        with open(os.path.join(args.output, name), "w") as f:
            f.write(svg(made))


if __name__ == "__main__":
    main()
