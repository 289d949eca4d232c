"""A comparison as one HTML page that needs nothing beside it.

    write_report("output/compare/bccd.html", runs)

`report.html` is the page and what it says, `report_figures` draws; here is what both are given.
"""

import io
import math
import os
from typing import NamedTuple

import numpy as np
import PIL.Image
from jinja2 import Environment, PackageLoader

from ..utils.files import written_whole
from . import report_figures as figures
from .outcome import PICTURES
from .report_figures import Curve, Image, Line, svg
from .summary import GROUP, label, show, summarize
from .table import summary_table

PATTERNS = {"-": "none", "--": "6 4", ":": "2 3", "-.": "8 3 2 3"}  # of a dash, in SVG
# Of a record, and what the page calls it.
FACTS = {
    "config": "Config",
    "data_set": "Data set",
    "train_split": "Trained on",
    "test_split": "Evaluated on",
    "seed": "Seeds",
    "max_iter": "Iterations",
    "batch_size": "Images of a batch",
    "optimizer_lr": "Learning rate",
    "overrides": "Overrides",
    "test_score_thresh": "Test score threshold",
    "device": "Device",
    "software": "Software",
    "jobs": "Runs side by side",
}
SOFTWARE = {"torch": "PyTorch", "torchvision": "torchvision", "detectron2": "Detectron2"}
MAX_POINTS = 300  # of a curve: more cannot be seen in a figure of a phone's width
MAX_CLASSES = 12  # with a precision-recall figure of their own
PICTURE_WIDTH = 1400  # pixels; the overview of four pictures has 1300
RECALL = np.linspace(0, 1, 101)  # where COCO reads a precision
PARTS = {"": "-", "/foreground": "--", "/background": ":"}  # of a classification, and its dash


class Variant(NamedTuple):
    """What is compared: its records, one for each seed, and the look of its lines."""

    name: str
    runs: list[dict]
    color: str
    dash: str


class Section(NamedTuple):
    """What the template shows under one heading.

    Attributes:
        missing: what the records lack, in words; "" for nothing.
        grids: (heading or "", images); those without images are not shown.
    """

    missing: str
    grids: list[tuple[str, list[Image]]]


def write_report(path: str, runs: list[dict], folder: str | None = None):
    """Writes the page of a comparison: the table, curves, histograms and example pictures.

    What a record lacks is named on the page.

    Args:
        path: of the HTML file; its folder is made.
        runs: records of runs in the order of the plan; those with "choosing", which
            only chose a learning rate, are left out.
        folder: of the comparison; a run's pictures are also looked for there, as
            records may come from another machine.

    Raises:
        BadInput: there are several seeds, and SciPy is missing.
    """
    runs = [run for run in runs if not run.get("choosing")]
    groups = {}
    for run in runs:
        groups.setdefault(tuple(run.get(key) for key in GROUP), []).append(run)
    rows = summarize(runs)
    names = [row["name"] for row in rows if not row["at_default_threshold"]]
    variants = [
        Variant(name, group, *figures.color_of(n))
        for n, (name, group) in enumerate(zip(names, groups.values()))
    ]
    configs = {os.path.splitext(os.path.basename(r.get("config") or ""))[0] for r in runs} - {""}
    templates = Environment(loader=PackageLoader(__package__, "."), autoescape=True)
    page = templates.get_template("report.html").render(
        title=f"Comparison on {configs.pop()}" if len(configs) == 1 else "Comparison",
        runs=runs,
        label=label,
        variants=variants,
        facts=_facts(runs),
        table=summary_table(rows) if rows else None,
        seeds=[len(row["seeds"]) for row in rows],
        sections=_sections(variants, folder),
        patterns=PATTERNS,
    )
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with written_whole(path) as f:
        f.write(page)


def _facts(runs):
    """dict: names and values; of what differs between the runs all values."""
    facts = {}
    for key, name in FACTS.items():
        texts = list(dict.fromkeys(filter(None, (_text(run, key) for run in runs))))
        if texts:
            differ = "differs: " if texts[1:] and key != "seed" else ""
            facts[name] = differ + (", " if key == "seed" else "; ").join(texts)
    return facts


def _text(run, key):
    if key == "software":
        return ", ".join(f"{name} {run[k]}" for k, name in SOFTWARE.items() if run.get(k))
    value = run.get(key)
    if isinstance(value, dict):
        return ", ".join(f"{k}: {x}" for k, x in value.items() if x is not None)
    return "" if value is None else show(value)


def course(run: dict, key: str) -> Curve | None:
    """One number while a run trained, in at most MAX_POINTS points, each a median.

    A logarithmic axis has only what is finite and above 0; None where nothing is.
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
    """The precision of a class, or of "all", at RECALL; 0 beyond the recall that is reached."""
    curve = (run.get("precision_recall") or {}).get(name) or {}
    points = sorted(zip(curve.get("recall") or [], curve.get("precision") or []))
    return Curve(RECALL, np.interp(RECALL, *zip(*points), right=0.0)) if points else None


def histogram(runs: list[dict], term: str) -> dict[str, np.ndarray] | None:
    """The mean counts of the runs that have the same edges (log10 of the score) as the first."""
    keys = ("edges", "foreground", "background")
    found = [(run.get("score_histograms") or {}).get(term) or {} for run in runs]
    found = [h for h in found if all(h.get(key) for key in keys)]
    found = [h for h in found if h["edges"] == found[0]["edges"]]
    return {key: np.mean([h[key] for h in found], axis=0) for key in keys} if found else None


def _sections(variants, folder):
    """dict[str, Section]: those below the table of results."""
    keys = _keys(variants, "course")
    losses = [k for k in keys if k == "total_loss" or "/" not in k and k.startswith("loss")]
    looks = [(k, k, "loss") for k in losses]
    looks += [(k, f"{k}: before the scaling by r", "loss") for k in keys if k.endswith("_cls_raw")]
    looks += [(k, k, "r") for k in keys if "guide" in k.split("/") and k.endswith("/r")]
    ratios = [k for k in keys if k.startswith("monitor/ratio/")]
    of_ratios = [(k, k.split("/", 2)[2], "classification / localization") for k in ratios]
    return {
        "scores": _scores(variants),
        "losses": Section(
            _without(variants, "losses", _has_course, losses), [("", _courses(variants, looks))]
        ),
        "outputs": _gradients(variants, keys, "monitor/outputs/", "L1 norm"),
        "features": _gradients(variants, keys, "monitor/features/", "L2 norm"),
        "ratios": Section(
            _without(variants, "ratio", _has_course, ratios), [("", _courses(variants, of_ratios))]
        ),
        "histograms": _histograms(variants),
        "curves": _precision_recalls(variants),
        "pictures": _pictures(variants, folder),
    }


def _keys(variants, part):
    """list[str]: the keys of a part of the records ("course", ...), in order of appearance."""
    return list(dict.fromkeys(k for v in variants for run in v.runs for k in run.get(part) or {}))


def _without(variants, what, has, *args):
    """str: the runs for which ``has(run, *args)`` is false, in words; "" where there are none."""
    names = []
    for v in variants:
        seeds = [str(r.get("seed")) for r in v.runs if not has(r, *args)]
        if seeds:
            every = len(seeds) == len(v.runs)
            names.append(v.name if every else f"{v.name} (seed {', '.join(seeds)})")
    none = not any(has(r, *args) for v in variants for r in v.runs)
    return f"{what} of {'every run' if none else '; '.join(names)}" if names else ""


def _has_course(run, keys):
    return any(course(run, key) for key in keys)


def _has_part(run, part):
    return any((run.get(part) or {}).values())


def _line(variant, curve_of, *args, **look):
    """list[Line]: one of the runs for which ``curve_of(run, *args)`` is a curve, if any is."""
    curves = [curve for run in variant.runs if (curve := curve_of(run, *args))]
    return [Line(curves, variant.color, variant.dash)._replace(**look)] if curves else []


def _courses(variants, looks):
    """list[Image]: of each (key, caption, label) of the courses, with all variants."""
    images = []
    for key, caption, ylabel in looks:
        if lines := [line for v in variants for line in _line(v, course, key)]:
            images.append(svg(caption, figures.courses(lines, ylabel, figures.limits(lines))))
    return images


def _scores(variants):
    images = []
    for key, caption in (("bbox/AP", "AP of the boxes"), ("segm/AP", "AP of the masks")):
        rows = []
        for v in variants:
            usual = [run.get("at_default_threshold") or {} for run in v.runs]
            aps = ([r[key] for r in rs if r.get(key) is not None] for rs in (v.runs, usual))
            rows.append((v.name, v.color, *aps))
        if any(aps for _, _, aps, _ in rows):
            images.append(svg(caption, figures.scores_of_seeds(rows)))
    missing = _without(variants, "AP", lambda run: run.get("bbox/AP") is not None)
    return Section(missing, [("", images)])


def _gradients(variants, keys, prefix, ylabel):
    """Section: a figure for each head and variant; those of a head have one scale."""
    keys = [key for key in keys if key.startswith(prefix)]
    heads, grids = {}, []
    for term in dict.fromkeys(key.split("/")[2] for key in keys):
        stage = f"Stage {term.rpartition('stage')[2]}" if "_stage" in term else "Head"
        heads.setdefault("RPN" if "rpn" in term else stage, []).append(term)
    for head, terms in heads.items():
        lines = {v.name: _lines_of_terms(v, prefix, terms) for v in variants}
        drawn = [line for of_variant in lines.values() for line in of_variant]
        ylim = figures.limits(drawn) if drawn else None
        images = [svg(n, figures.courses(ls, ylabel, ylim)) for n, ls in lines.items() if ls]
        grids.append((f"{head}: {', '.join(terms)}", images))
    return Section(_without(variants, "gradient magnitudes", _has_course, keys), grids)


def _lines_of_terms(variant, prefix, terms):
    """list[Line]: classification in the variant's color, localization black, others grey."""
    lines = []
    for term in terms:
        is_box = "loc" in term or "box" in term
        color = variant.color if "cls" in term else "#000000" if is_box else "#777777"
        for part, dash in PARTS.items() if "cls" in term else [("", "-")]:
            lines += _line(variant, course, prefix + term + part, color=color, dash=dash)
    return lines


def _histograms(variants):
    grids = []
    for term in _keys(variants, "score_histograms"):
        found = [(v, h) for v in variants if (h := histogram(v.runs, term))]
        if found:
            highest = max(max(h["foreground"].max(), h["background"].max()) for _, h in found)
            ylim = (0.5, max(2 * highest, 10))
            images = [svg(v.name, figures.score_histogram(h, v.color, ylim)) for v, h in found]
            grids.append((term, images))
    return Section(_without(variants, "score histograms", _has_part, "score_histograms"), grids)


def _precision_recalls(variants):
    """Section: of all classes together, and of those whose AP differs most, in their order."""

    def difference(name):
        aps = [[r.get(f"bbox/AP-{name}") for r in v.runs] for v in variants]
        means = [np.mean(known) for x in aps if (known := [ap for ap in x if ap is not None])]
        return max(means) - min(means) if means else 0

    names = [name for name in _keys(variants, "precision_recall") if name != "all"]
    most = sorted(names, key=difference, reverse=True)[:MAX_CLASSES]
    images = []
    for name in ["all", *(name for name in names if name in most)]:
        if lines := [line for v in variants for line in _line(v, precision_recall, name)]:
            caption = "all classes together" if name == "all" else name
            images.append(svg(caption, figures.precision_recall(lines)))
    note = f"Of {len(names)} classes the {len(most)} are shown whose AP differs most."
    heading = note if len(most) < len(names) else ""
    missing = _without(variants, "precision-recall curves", _has_part, "precision_recall")
    return Section(missing, [(heading, images)])


def _pictures(variants, folder):
    """Section: the example pictures of the first seed that has some, variant by variant."""
    made = [next(filter(None, (_picture(v, r, folder) for r in v.runs)), None) for v in variants]
    absent = ", ".join(v.name for v, image in zip(variants, made) if not image)
    return Section(f"pictures of {absent}" if absent else "", [("", list(filter(None, made)))])


def _picture(variant, run, folder):
    """Image or None. A run may come from another machine, with or without its pictures."""
    if not run.get("pictures"):
        return None
    own = run.get("folder") or ""
    for root in (own, folder or "", os.path.join(folder or "", os.path.basename(own))):
        out = io.BytesIO()
        try:
            with PIL.Image.open(os.path.join(root, PICTURES)) as image:
                image = image.convert("RGB")
        except OSError:  # absent or torn
            continue
        image.thumbnail((PICTURE_WIDTH, 4 * PICTURE_WIDTH))
        image.save(out, format="JPEG", quality=75, optimize=True)
        return figures.embedded(f"{variant.name}, seed {run.get('seed')}", "jpeg", out.getvalue())
    return None
