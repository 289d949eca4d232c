"""The sections of a report below its tables: figures and pictures, each with a plain sentence."""

import os

import numpy as np

from . import report_figures as figures
from . import report_page as page
from .outcome import PICTURES
from .report_curves import course, histogram, keys_of, precision_recall
from .report_variant import course_keys, courses_of, legend, section, without

MAX_CLASSES = 12  # with a precision-recall figure of their own


def scores(variants):
    """Section: AP of each seed."""
    found = []
    for key, caption in (("bbox/AP", "AP of the boxes"), ("segm/AP", "AP of the masks")):
        rows = []
        for v in variants:
            at_default = [run.get("at_default_threshold") or {} for run in v.runs]
            values = ([r[key] for r in rs if r.get(key) is not None] for rs in (v.runs, at_default))
            rows.append((v.name, v.color, *values))
        if any(values for _, _, values, _ in rows):
            found.append((caption, figures.svg(figures.scores_of_seeds(rows, "AP in percent"))))
    return section(
        "AP of each seed",
        "A dot is a seed, a bar the mean; a hollow diamond is the same weights at the default "
        "score threshold of their detector. Good: to the right. A difference counts only if it is "
        "large beside the spread of the dots.",
        [page.grid(found)] if found else [],
        without(variants, "AP", lambda run: run.get("bbox/AP") is not None),
    )


def losses(variants):
    """Section: the losses and r over the iterations."""
    keys = course_keys(variants)
    terms = [k for k in keys if k == "total_loss" or "/" not in k and k.startswith("loss")]
    raw = [k for k in keys if k.endswith("loss_cls_raw")]
    ratios = [k for k in keys if "guide" in k.split("/") and k.endswith("/r")]
    looks = [(k, k, "loss") for k in terms]
    looks += [(f"{k}: before the scaling by r", k, "loss") for k in raw]
    looks += [(k, k, "r") for k in ratios]
    found = [(caption, s) for caption, k, label in looks if (s := courses_of(variants, k, label))]
    return section(
        "Losses",
        "Bold is the mean of the seeds, faint each seed; a cross is where a run diverged. Good: "
        "downwards. Classification losses of different variants are different functions: compare "
        "their course, not their height. A guided one is scaled by r to the size of its guide.",
        [legend(variants), page.grid(found)] if found else [],
        without(variants, "losses", lambda run: any(course(run, k) for k in terms)),
    )


def score_histograms(variants):
    """Section: the scores of foreground and background at the end of the training."""
    body = []
    for term in keys_of([run for v in variants for run in v.runs], "score_histograms"):
        found = [(v, h) for v in variants if (h := histogram(v.runs, term))]
        if found:
            highest = max(max(h["foreground"].max(), h["background"].max()) for _, h in found)
            ylim = (0.5, max(2 * highest, 10))
            svgs = [figures.svg(figures.score_histogram(h, v.color, ylim)) for v, h in found]
            body += [page.small_heading(term)]
            body += [page.grid([(v.name, s) for (v, _), s in zip(found, svgs)])]
    return section(
        "Scores of foreground and background",
        "How many samples of the last batch measured have which score, both axes logarithmic: "
        "foreground (colored) the score of the right class, background (grey) the highest of any "
        "class; mean of the seeds. Good: the color at the right, the grey at the left. Where the "
        "grey is higher at a large score, false alarms outnumber objects.",
        body,
        without(variants, "score histograms", lambda run: _has(run, "score_histograms")),
    )


def precision_recalls(variants):
    """Section: precision over recall, of all classes together and class by class."""
    names = keys_of([run for v in variants for run in v.runs], "precision_recall")
    names = [name for name in names if name != "all"]
    shown = _most_different(variants, names)
    found = []
    for name in ["all", *shown]:
        lines = [x for v in variants if (x := v.line(lambda r, n=name: precision_recall(r, n)))]
        if lines:
            caption = "all classes together" if name == "all" else name
            found.append((caption, figures.svg(figures.precision_recall(lines))))
    some = ""
    if len(shown) < len(names):
        some = f" Of {len(names)} classes the {len(shown)} are shown whose AP differs most."
    return section(
        "Precision and recall",
        "How many detections are right (upwards) against how many objects are found (rightwards) "
        "as the score threshold falls, at IoU 0.5; bold the mean of the seeds. Good: far to the "
        f"upper right.{some}",
        [legend(variants), page.grid(found)] if found else [],
        without(variants, "precision-recall curves", lambda run: _has(run, "precision_recall")),
    )


def _has(run, part):
    return any((run.get(part) or {}).values())


def _most_different(variants, names):
    """list[str]: at most MAX_CLASSES of the classes, in their order."""

    def difference(name):
        key = f"bbox/AP-{name}"
        of_variants = [[r[key] for r in v.runs if r.get(key) is not None] for v in variants]
        means = [np.mean(aps) for aps in of_variants if aps]
        return max(means) - min(means) if means else 0

    most = sorted(names, key=difference, reverse=True)[:MAX_CLASSES]
    return [name for name in names if name in most]


def pictures(variants, folder):
    """Section: the example pictures of the first seed that has some, variant by variant."""
    body, absent = [], []
    for v in variants:
        made = next(filter(None, (_picture(v, run, folder) for run in v.runs)), None)
        body += [made] if made else []
        absent += [] if made else [v.name]
    return section(
        "Example pictures",
        "Ground truth at the left, detections above the score of best F1 at the right, on the "
        "same images of the test set. Good: the same boxes at both sides. On a narrow screen the "
        "pictures scroll sideways.",
        body,
        [page.missing(f"pictures of {', '.join(absent)}")] if absent else [],
    )


def _picture(variant, run, folder):
    """str or None: HTML. A run may come from another machine, with or without its pictures."""
    if not run.get("pictures"):
        return None
    own = run.get("folder") or ""
    for root in (own, folder or "", os.path.join(folder or "", os.path.basename(own))):
        try:
            caption = f"{variant.name}, seed {run.get('seed')}"
            return page.picture(caption, os.path.join(root, PICTURES))
        except OSError:  # absent or torn
            continue
    return None
