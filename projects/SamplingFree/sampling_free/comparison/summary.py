"""The summary of a comparison, from its records; nothing is read or written.

    summarize(runs, confidence=0.95) -> list[dict]    # a row for each variant, see there
    label(run) -> str                                 # what a run's variant is called
    of_best_ap(records) -> dict or None               # the run that chooses a learning rate
    table.summary_table(rows) -> (head, cells)        # the same as strings, for every table

A row's difference to the reference, the first variant, is taken seed by seed: both runs of a pair
have the same seed, data order and test settings.
"""

import math
import os
import statistics

import numpy as np

from ..utils.errors import BadInput
from .bootstrap import paired_interval

TASKS = ("bbox/", "segm/")
# What makes runs of several seeds one row.
GROUP = ("config", "variant", "override", "learning_rate", "train_split", "test_split")


def label(run: dict) -> str:
    """What the variant of a run is called: "focal", "all_samples:model.prior=0.5", "retinanet".

    Args:
        run: a record; without a variant its config file gives the name.
    """
    name = run.get("variant") or os.path.splitext(os.path.basename(run.get("config") or "run"))[0]
    return f"{name}:{run['override']}" if run.get("override") else name


def of_best_ap(records: list[dict]) -> dict | None:
    """The record of largest "bbox/AP", of equal ones the first.

    Args:
        records: of runs that tried learning rates.

    Returns:
        None where no run led to an AP.
    """
    found = [r for r in records if r.get("bbox/AP") is not None]
    return max(found, key=lambda r: r["bbox/AP"], default=None)


def summarize(runs: list[dict], confidence: float = 0.95) -> list[dict]:
    """A row for each variant (and learning rate), and one for it at its default threshold.

    Args:
        runs: records in the order of the plan; the first one's variant is the
            reference, of other rates the first one's at the same rate where there is one.
            Those with "choosing", which only chose a learning rate, are left out.
        confidence: of the intervals, in (0, 1).

    Returns:
        With the keys

        * `name`: :func:`label`, with the rate where there are several; and the keys of `GROUP`.
        * `at_default_threshold` (bool), `test_score_thresh` (number, or a list for several heads).
        * `seeds` (list[int]): all; `diverged` (list[int]): those whose loss was not finite.
        * `metrics`: for each of "bbox/AP", "bbox/AP50", "bbox/AP-<class>", "segm/AP", ... in
          percent: `mean`, `std` (of the sample; None with one seed), `min`, `max`, `seeds`,
          `values`.
        * `is_reference` (bool), `differences`: None for the reference; else for each metric the
          difference to it: `mean`, `low` and `high` (Student's t; None with one pair), `seeds`,
          `values`. A metric without a pair is missing. Of "bbox/AP" also `image_low` and
          `image_high`, over test images that are drawn anew (bootstrap.py), where all runs of the
          pairs have kept theirs.
        * `seconds_per_iteration`, `time_ratio` (to the reference, pairs of the same device and
          number of runs side by side; 1 for the reference), `peak_memory_mib`: means and, of the
          memory, the most; None where unknown.
        * `start_gradient_ratio`: classification over localization gradient at the outputs before
          the first step, of the head where it is largest; mean, None where it was not measured.

    Raises:
        BadInput: there are pairs, and SciPy is missing.
    """
    groups = {}
    for run in runs:
        if not run.get("choosing"):
            groups.setdefault(_group(run), []).append(run)
    names = [label(group[0]) for group in groups.values()]
    rows = []
    for (key, group), name in zip(groups.items(), names):
        reference = _reference(key, groups)
        if names.count(name) > 1 and group[0].get("learning_rate") is not None:
            name += f", rate {group[0]['learning_rate']:g}"
        rows.append(_row(name, group, reference, confidence))
        defaults = [_at_default_threshold(r) for r in group if r.get("at_default_threshold")]
        if defaults:
            thresh = defaults[0].get("test_score_thresh")
            rows.append(_row(f"{name}, threshold {show(thresh)}", defaults, reference, confidence))
    return rows


def show(thresh):
    """A test score threshold as text; those of several heads once if they are the same."""
    values = list(dict.fromkeys(thresh)) if isinstance(thresh, (list, tuple)) else [thresh]
    return ", ".join(f"{x:g}" if isinstance(x, (int, float)) else str(x) for x in values)


def spread(values: list[float]) -> dict:
    """Mean, standard deviation of the sample, smallest and largest.

    Args:
        values: not empty.

    Returns:
        `std` is None for one value.
    """
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
    }


def paired_difference(
    values: list[float], reference: list[float], confidence: float = 0.95
) -> dict:
    """The mean of the differences of pairs, with its confidence interval by Student's t.

    Args:
        values, reference: of the same seeds in the same order; not empty.
        confidence: in (0, 1).

    Returns:
        `mean`, `low`, `high`, `values` (the differences). One pair has no interval: None.

    Raises:
        BadInput: SciPy is missing.
    """
    differences = [a - b for a, b in zip(values, reference)]
    mean, low, high = statistics.fmean(differences), None, None
    if len(differences) > 1:
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        half = _student_t((1 + confidence) / 2, len(differences) - 1) * error
        low, high = mean - half, mean + half
    return {"mean": mean, "low": low, "high": high, "values": differences}


def verdict(difference: dict | None) -> str:
    """Whether a difference is more than chance, of the seeds and of the images.

    Args:
        difference: of "bbox/AP" in a row's `differences`.

    Returns:
        "better" or "worse" where both intervals leave out zero on that side; else "open".
    """
    difference = difference or {}
    ends = [difference.get(key) for key in ("low", "high", "image_low", "image_high")]
    if None in ends:
        return "open"
    return "better" if min(ends) > 0 else "worse" if max(ends) < 0 else "open"


def _student_t(quantile, freedom):
    try:
        from scipy import stats
    except ImportError:
        raise BadInput(
            "a confidence interval over several seeds needs SciPy: pip install scipy"
        ) from None
    return float(stats.t.ppf(quantile, freedom))


def _group(run):
    return tuple(run.get(key) for key in GROUP)


def _reference(key, groups):
    """The runs of the first variant, at this rate if it has run at it."""
    first = next(iter(groups))
    rate, splits = key[GROUP.index("learning_rate")], key[-2:]
    same_rate = (*first[:3], rate, *splits)
    return groups.get(same_rate, groups[first])


def _at_default_threshold(run):
    """A record as if its evaluation had been the one at the default threshold."""
    shared = {key: value for key, value in run.items() if not key.startswith(TASKS)}
    return {**shared, **run["at_default_threshold"], "is_default": True}


def _row(name, group, reference, confidence):
    first = group[0]
    is_default = bool(first.get("is_default"))
    is_reference = group is reference
    metrics = {key: _values(group, key) for key in _metrics(group)}
    differences = {}
    for key, of_seed in metrics.items():
        of_reference = _values(reference, key)
        seeds = [seed for seed in of_seed if seed in of_reference]
        if seeds:
            pairs = [of_seed[s] for s in seeds], [of_reference[s] for s in seeds]
            differences[key] = {**paired_difference(*pairs, confidence), "seeds": seeds}
            if key == "bbox/AP":
                mean = differences[key]["mean"]
                differences[key].update(_over_images(group, reference, seeds, mean, confidence))
    seconds = list(_values(group, "seconds_per_iteration").values())
    memory = list(_values(group, "peak_memory_mib").values())
    ratios = [x for x in map(_start_gradient_ratio, group) if x is not None]
    return {
        "name": name,
        **dict(zip(GROUP, _group(first))),
        "at_default_threshold": is_default,
        "test_score_thresh": first.get("test_score_thresh"),
        "seeds": [run["seed"] for run in group],
        "diverged": [run["seed"] for run in group if run.get("failed")],
        "metrics": {
            key: {**spread(list(x.values())), "seeds": list(x), "values": list(x.values())}
            for key, x in metrics.items()
        },
        "is_reference": is_reference,
        "differences": None if is_reference else differences,
        "seconds_per_iteration": statistics.fmean(seconds) if seconds else None,
        "time_ratio": _time_ratio(group, reference),
        "peak_memory_mib": max(memory) if memory else None,
        "start_gradient_ratio": statistics.fmean(ratios) if ratios else None,
    }


def _over_images(group, reference, seeds, mean, confidence):
    drawn = [{r["seed"]: r.get("bootstrap") for r in runs} for runs in (group, reference)]
    pairs = [[by_seed[seed] for seed in seeds] for by_seed in drawn]
    if not all(values for side in pairs for values in side):
        return {}
    values, base = (np.array(side, dtype=float) for side in pairs)  # None becomes NaN
    low, high = paired_interval(values, base, mean, confidence)
    return {"image_low": low, "image_high": high}


def _start_gradient_ratio(run):
    course = run.get("course") or {}
    ratios = [x[0] for key, x in course.items() if key.startswith("monitor/ratio/")]
    return max((x for x in ratios if x is not None), default=None)


def _metrics(group):
    """The metrics of these records: first the means of a task, then its classes."""
    keys = list(dict.fromkeys(k for run in group for k in run if k.startswith(TASKS)))
    keys = [key for key in keys if _values(group, key)]
    return sorted(keys, key=lambda key: (TASKS.index(key[:5]), "-" in key))


def _values(runs, key):
    """Of each seed that has this number, the number; in the order of the records."""
    numbers = {run["seed"]: run.get(key) for run in runs}
    return {s: x for s, x in numbers.items() if isinstance(x, (int, float)) and math.isfinite(x)}


def _time_ratio(group, reference):
    seconds = {run["seed"]: run for run in reference if run.get("seconds_per_iteration")}
    ratios = []
    for run in group:
        other = seconds.get(run["seed"])
        alike = other and all(run.get(k) == other.get(k) for k in ("device", "jobs"))
        if alike and run.get("seconds_per_iteration"):
            ratios.append(run["seconds_per_iteration"] / other["seconds_per_iteration"])
    return statistics.fmean(ratios) if ratios else None
