"""The sections of a report: what each shows, with a plain sentence, and what is missing."""

import base64
import io
import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from . import report_figures as figures
from .outcome import PICTURES
from .report_curves import course, head_of, histogram, keys_of, precision_recall

MAX_CLASSES = 12  # with a precision-recall figure of their own
PICTURE_WIDTH = 1400  # pixels; the overview of four pictures has 1300
PATTERNS = {"-": "none", "--": "6 4", ":": "2 3", "-.": "8 3 2 3"}  # of a dash, in SVG
OTHER = "#777777"
PARTS = {"": "-", "/foreground": "--", "/background": ":"}  # of a classification, and its dash


class Embedded(NamedTuple):
    """An image within the page: its caption and its data as a URL."""

    caption: str
    source: str


class Section(NamedTuple):
    """What `report.html` shows under one heading, in this order.

    Attributes:
        title, text: the text says what is seen, and what would be good.
        missing: of :func:`_without`.
        table: the head, then the rows.
        cautions: what to bear in mind.
        legend: (text, color, dash pattern) of the lines.
        grids: (heading or "", images), small and side by side.
        pictures: as wide as the page.
    """

    title: str
    text: str = ""
    missing: list = []
    table: list = []
    cautions: list = []
    legend: list = []
    grids: list = []
    pictures: list = []


class Variant(NamedTuple):
    """What is compared with others.

    Attributes:
        name (str):
        runs (list[dict]): records, one for each seed.
        color, dash (str): of its lines.
    """

    name: str
    runs: list
    color: str
    dash: str

    @classmethod
    def number(cls, n, name, runs):
        """The variant at place ``n``, counted from 0, in the color of that place."""
        return cls(name, runs, *figures.color_of(n))

    def line(self, curve_of):
        """Line or None: of the runs for which ``curve_of(run)`` is a curve."""
        curves = [c for run in self.runs if (c := curve_of(run)) is not None]
        return figures.Line(curves, self.color, self.dash) if curves else None


def sections_of(variants: list[Variant], folder: str | None) -> list[Section]:
    """Returns the sections below the table of results.

    Args:
        variants: at least one.
        folder: of the comparison, where pictures are looked for too.
    """
    places = (
        (
            "outputs",
            "Gradients at the outputs",
            "How strongly each loss pulls at what its head puts out: L1 norm of its gradient.",
            "L1 norm",
        ),
        (
            "features",
            "Gradients at the features",
            "The same at the feature maps that all losses share: L2 norm.",
            "L2 norm",
        ),
    )
    return [
        _scores(variants),
        _losses(variants),
        *(_magnitudes(variants, *place) for place in places),
        _ratios(variants),
        _score_histograms(variants),
        _precision_recalls(variants),
        _pictures(variants, folder),
    ]


def _figure(caption, drawn):
    return _embedded(caption, "svg+xml", figures.svg(drawn).encode())


def _embedded(caption, kind, data):
    return Embedded(caption, f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def _section(title, text, missing, grids, legend=()):
    """A section whose text and legend stand only where there is something to see."""
    grids = [grid for grid in grids if grid[1]]
    return Section(
        title, text if grids else "", missing, legend=legend if grids else [], grids=grids
    )


def _without(variants, what, has):
    """list[str]: a line that names the runs without ``what``; empty where all have it."""
    names = []
    for v in variants:
        seeds = [str(r.get("seed")) for r in v.runs if not has(r)]
        if seeds:
            every = len(seeds) == len(v.runs)
            names.append(v.name if every else f"{v.name} (seed {', '.join(seeds)})")
    none = not any(has(r) for v in variants for r in v.runs)
    return [f"{what} of {'every run' if none else '; '.join(names)}"] if names else []


def _legend(variants):
    """The colors of the variants."""
    return [(v.name, v.color, PATTERNS[v.dash]) for v in variants]


def _course_keys(variants):
    """list[str]: every key of the courses of all runs."""
    return keys_of([run for v in variants for run in v.runs], "course")


def _courses_of(variants, key, ylabel, caption):
    """Embedded or None: one number of all variants; None where no run has it."""
    lines = [x for v in variants if (x := v.line(lambda run: course(run, key)))]
    if not lines:
        return None
    return _figure(caption, figures.courses(lines, ylabel, figures.limits(lines)))


def _scores(variants):
    """Section: AP of each seed."""
    found = []
    for key, caption in (("bbox/AP", "AP of the boxes"), ("segm/AP", "AP of the masks")):
        rows = []
        for v in variants:
            at_default = [run.get("at_default_threshold") or {} for run in v.runs]
            values = ([r[key] for r in rs if r.get(key) is not None] for rs in (v.runs, at_default))
            rows.append((v.name, v.color, *values))
        if any(values for _, _, values, _ in rows):
            found.append(_figure(caption, figures.scores_of_seeds(rows, "AP in percent")))
    return _section(
        "AP of each seed",
        "A dot is a seed, a bar the mean; a hollow diamond is the same weights at the default "
        "score threshold of their detector. Good: to the right. A difference counts only if it is "
        "large beside the spread of the dots.",
        _without(variants, "AP", lambda run: run.get("bbox/AP") is not None),
        [("", found)],
    )


def _losses(variants):
    """Section: the losses and r over the iterations."""
    keys = _course_keys(variants)
    terms = [k for k in keys if k == "total_loss" or "/" not in k and k.startswith("loss")]
    raw = [k for k in keys if k.endswith("loss_cls_raw")]
    ratios = [k for k in keys if "guide" in k.split("/") and k.endswith("/r")]
    looks = [(k, k, "loss") for k in terms]
    looks += [(f"{k}: before the scaling by r", k, "loss") for k in raw]
    looks += [(k, k, "r") for k in ratios]
    found = [_courses_of(variants, k, label, caption) for caption, k, label in looks]
    return _section(
        "Losses",
        "Bold is the mean of the seeds, faint each seed; a cross is where a run diverged. Good: "
        "downwards. Classification losses of different variants are different functions: compare "
        "their course, not their height. A guided one is scaled by r to the size of its guide.",
        _without(variants, "losses", lambda run: any(course(run, k) for k in terms)),
        [("", [x for x in found if x])],
        _legend(variants),
    )


def _score_histograms(variants):
    """Section: the scores of foreground and background at the end of the training."""
    grids = []
    for term in keys_of([run for v in variants for run in v.runs], "score_histograms"):
        found = [(v, h) for v in variants if (h := histogram(v.runs, term))]
        if found:
            highest = max(max(h["foreground"].max(), h["background"].max()) for _, h in found)
            ylim = (0.5, max(2 * highest, 10))
            images = [_figure(v.name, figures.score_histogram(h, v.color, ylim)) for v, h in found]
            grids.append((term, images))
    return _section(
        "Scores of foreground and background",
        "How many samples of the last batch measured have which score, both axes logarithmic: "
        "foreground (colored) the score of the right class, background (grey) the highest of any "
        "class; mean of the seeds. Good: the color at the right, the grey at the left. Where the "
        "grey is higher at a large score, false alarms outnumber objects.",
        _without(variants, "score histograms", lambda run: _has(run, "score_histograms")),
        grids,
    )


def _precision_recalls(variants):
    """Section: precision over recall, of all classes together and class by class."""
    names = keys_of([run for v in variants for run in v.runs], "precision_recall")
    names = [name for name in names if name != "all"]
    shown = _most_different(variants, names)
    found = []
    for name in ["all", *shown]:
        lines = [x for v in variants if (x := v.line(lambda r, n=name: precision_recall(r, n)))]
        if lines:
            caption = "all classes together" if name == "all" else name
            found.append(_figure(caption, figures.precision_recall(lines)))
    some = ""
    if len(shown) < len(names):
        some = f" Of {len(names)} classes the {len(shown)} are shown whose AP differs most."
    return _section(
        "Precision and recall",
        "How many detections are right (upwards) against how many objects are found (rightwards) "
        "as the score threshold falls, at IoU 0.5; bold the mean of the seeds. Good: far to the "
        f"upper right.{some}",
        _without(variants, "precision-recall curves", lambda run: _has(run, "precision_recall")),
        [("", found)],
        _legend(variants),
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


def _magnitudes(variants, place, title, sentence, ylabel):
    prefix = f"monitor/{place}/"
    keys = [k for k in _course_keys(variants) if k.startswith(prefix)]
    terms = list(dict.fromkeys(k[len(prefix) :].split("/")[0] for k in keys))
    heads = {}
    for term in terms:
        heads.setdefault(head_of(term), []).append(term)
    grids = []
    for head, of_head in heads.items():
        lines = [(v, _lines(v, prefix, of_head)) for v in variants]
        ylim = figures.limits([line for _, ls in lines for line in ls])
        found = [_figure(v.name, figures.courses(ls, ylabel, ylim)) for v, ls in lines if ls]
        grids.append((f"{head}: {', '.join(of_head)}", found))
    return _section(
        title,
        f"{sentence} Bad: a classification (colored) many times as large as the localization "
        "(black), or a background part that buries the foreground part, above all at the start. "
        "The figures of a head have one scale.",
        _without(variants, "gradient magnitudes", lambda run: _has_course(run, prefix)),
        grids,
        _legend_of_gradients(),
    )


def _lines(variant, prefix, terms):
    """list[Line]: of one variant; classification is colored, localization black."""
    looks = []
    for term in terms:
        if "cls" in term:
            looks += [(f"{term}{part}", variant.color, dash) for part, dash in PARTS.items()]
        else:
            is_box = "loc" in term or "box" in term
            looks.append((term, "#000000" if is_box else OTHER, "-"))
    lines = []
    for key, color, dash in looks:
        line = variant.line(lambda run, key=key: course(run, prefix + key))
        lines += [line._replace(color=color, dash=dash)] if line else []
    return lines


def _ratios(variants):
    prefix = "monitor/ratio/"
    keys = [k for k in _course_keys(variants) if k.startswith(prefix)]
    label = "classification / localization"
    found = [_courses_of(variants, k, label, k[len(prefix) :]) for k in keys]
    return _section(
        "Classification gradient over localization gradient",
        "The two magnitudes at the outputs, one divided by the other. Bad: far above 1, where the "
        "classification drowns the localization, or jumping. A guide makes the losses equal, not "
        "their gradients: 1 itself is no aim.",
        _without(variants, "ratio", lambda run: _has_course(run, prefix)),
        [("", [x for x in found if x])],
        _legend(variants),
    )


def _legend_of_gradients():
    color = figures.COLORS[0]
    return [
        ("classification, in the variant's color", color, PATTERNS["-"]),
        ("its foreground part", color, PATTERNS["--"]),
        ("its background part", color, PATTERNS[":"]),
        ("localization", "#000000", PATTERNS["-"]),
        ("other losses", OTHER, PATTERNS["-"]),
    ]


def _has_course(run, prefix):
    return any(course(run, k) for k in run.get("course") or {} if k.startswith(prefix))


def _pictures(variants, folder):
    """Section: the example pictures of the first seed that has some, variant by variant."""
    found, absent = [], []
    for v in variants:
        made = next(filter(None, (_picture(v, run, folder) for run in v.runs)), None)
        found += [made] if made else []
        absent += [] if made else [v.name]
    text = (
        "Ground truth at the left, detections above the score of best F1 at the right, on the "
        "same images of the test set. Good: the same boxes at both sides. On a narrow screen the "
        "pictures scroll sideways."
    )
    missing = [f"pictures of {', '.join(absent)}"] if absent else []
    return Section("Example pictures", text if found else "", missing, pictures=found)


def _picture(variant, run, folder):
    """Embedded or None. A run may come from another machine, with or without its pictures."""
    if not run.get("pictures"):
        return None
    own = run.get("folder") or ""
    for root in (own, folder or "", os.path.join(folder or "", os.path.basename(own))):
        out = io.BytesIO()
        try:
            with Image.open(os.path.join(root, PICTURES)) as image:
                image = image.convert("RGB")
        except OSError:  # absent or torn
            continue
        image.thumbnail((PICTURE_WIDTH, 4 * PICTURE_WIDTH))
        image.save(out, format="JPEG", quality=75, optimize=True)
        return _embedded(f"{variant.name}, seed {run.get('seed')}", "jpeg", out.getvalue())
    return None
