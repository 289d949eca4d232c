"""What the figures of a report show, picked out of the records of runs; no drawing.

Legend: T points of a curve, S runs (seeds) of a variant, B bins of a histogram.
"""

import math
from typing import NamedTuple

import numpy as np

MAX_POINTS = 300  # of a curve: more cannot be seen in a figure of a phone's width
RECALL = np.linspace(0, 1, 101)  # where COCO reads a precision


class Curve(NamedTuple):
    """A curve of one run.

    Attributes:
        x, y (ndarray): (T,) finite.
        diverged (bool): the run ended with a loss that is not finite.
    """

    x: np.ndarray
    y: np.ndarray
    diverged: bool = False


def course(run: dict, key: str) -> Curve | None:
    """The course of one number while a run trained.

    Args:
        run: a record; its "course" holds "iteration" and equally long lists.
        key: of the course. Values that a logarithmic axis does not have are left out: None,
            those that are not finite, and those that are not above 0.

    Returns:
        At most MAX_POINTS points, each the median of its neighbors where there
        are more; None where the run has no value.
    """
    logged = run.get("course") or {}
    pairs = zip(logged.get("iteration") or [], logged.get(key) or [])
    points = [(i, v) for i, v in pairs if v is not None and 0 < v < math.inf]
    if not points:
        return None
    parts = np.array_split(np.array(points, dtype=float), min(len(points), MAX_POINTS))
    x, y = np.array([np.median(part, axis=0) for part in parts]).T
    return Curve(x, y, bool(run.get("failed")))


def precision_recall(run: dict, name: str) -> Curve | None:
    """The precision of one class at RECALL; beyond the recall that the run reaches it is 0.

    Args:
        run: a record.
        name: of a class, or "all".

    Returns:
        None where the run has no such curve.
    """
    curve = (run.get("precision_recall") or {}).get(name) or {}
    points = sorted(zip(curve.get("recall") or [], curve.get("precision") or []))
    if not points:
        return None
    return Curve(RECALL, np.interp(RECALL, *zip(*points), right=0.0))


def mean(curves: list[Curve]) -> Curve:
    """The mean of several curves at each x that one of them has.

    Diverged runs count only where there are no others, as they would hide the others.

    Args:
        curves: at least one.
    """
    curves = [c for c in curves if not c.diverged] or curves
    values = {}
    for curve in curves:
        for x, y in zip(curve.x, curve.y):
            values.setdefault(x, []).append(y)
    means = [(x, np.mean(values[x])) for x in sorted(values)]
    return Curve(*np.array(means).T)


def histogram(runs: list[dict], term: str) -> dict | None:
    """The mean counts of the runs of a variant.

    Args:
        runs: S records.
        term: classification loss, as the records' "score_histograms" name it.

    Returns:
        "edges" (B + 1,), log10 of the score; "foreground" and "background" (B,).
        Runs with other edges than the first are left out. None where no run has a histogram.
    """
    keys = ("edges", "foreground", "background")
    found = [(run.get("score_histograms") or {}).get(term) or {} for run in runs]
    found = [h for h in found if all(h.get(key) for key in keys)]
    found = [h for h in found if h["edges"] == found[0]["edges"]]
    if not found:
        return None
    counts = {key: np.mean([h[key] for h in found], axis=0) for key in keys[1:]}
    return {"edges": np.array(found[0]["edges"]), **counts}


def keys_of(runs, part):
    """list[str]: the keys of a part of the records ("course", ...), in order of appearance."""
    return list(dict.fromkeys(key for run in runs for key in run.get(part) or {}))


def head_of(term):
    """str: where a loss term comes from: "RPN", "Stage 1" of a cascade, or "Head"."""
    if "rpn" in term:
        return "RPN"
    return f"Stage {term.rpartition('stage')[2]}" if "_stage" in term else "Head"
