"""A comparison as one HTML page that needs nothing beside it.

    write_report("output/compare/bccd.html", runs)

`report_page` has the HTML, `report_sections` and `report_gradients` what is shown and said,
`report_figures` the drawing, `report_curves` the numbers behind it.
"""

import os

from . import report_page as page
from .report_gradients import gradients
from .report_sections import losses, pictures, precision_recalls, score_histograms, scores
from .report_variant import Variant
from .summary import GROUP, label, show, summarize
from .table import summary_table

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
    variants = _variants(runs)
    names = ", ".join(v.name for v in variants) or "no run yet"
    parts = [
        page.paragraph(f"Compared: {names}."),
        page.facts(_facts(runs)),
        *_table(runs),
    ]
    if variants:
        parts += scores(variants) + losses(variants) + gradients(variants)
        parts += score_histograms(variants) + precision_recalls(variants)
        parts += pictures(variants, folder)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as f:
        f.write(page.page(_title(runs), parts))
    os.replace(temporary, path)


def _variants(runs):
    """list[Variant]: one for each row of the summary, without those at a default threshold."""
    groups = {}
    for run in runs:
        groups.setdefault(tuple(run.get(key) for key in GROUP), []).append(run)
    names = [row["name"] for row in summarize(runs) if not row["at_default_threshold"]]
    return [Variant.number(n, name, rs) for n, (name, rs) in enumerate(zip(names, groups.values()))]


def _title(runs):
    configs = {os.path.splitext(os.path.basename(run.get("config") or ""))[0] for run in runs}
    configs = sorted(configs - {""})
    return f"Comparison on {configs[0]}" if len(configs) == 1 else "Comparison"


def _facts(runs):
    """list[tuple]: names and values; of what differs between the runs all values."""
    runs = [{**run, "software": _software(run)} for run in runs]
    rows = []
    for key, name in FACTS.items():
        texts = [_text(run[key]) for run in runs if run.get(key) not in (None, [], "")]
        texts = list(dict.fromkeys(texts))
        if texts:
            differ = "differs: " if texts[1:] and key != "seed" else ""
            rows.append((name, differ + (", " if key == "seed" else "; ").join(texts)))
    return rows


def _software(run):
    return ", ".join(f"{name} {run[key]}" for key, name in SOFTWARE.items() if run.get(key))


def _text(value):
    if isinstance(value, dict):
        return ", ".join(f"{key}: {x}" for key, x in value.items() if x is not None)
    return show(value)


def _table(runs):
    """The summary, and what to bear in mind with it."""
    rows = summarize(runs)
    parts = [
        page.heading("Result"),
        page.paragraph(
            "AP in percent: mean ± standard deviation (smallest to largest) over the seeds. The "
            "difference to the first variant is taken seed by seed, with its 95 % interval by "
            "Student's t: it says something only where the interval leaves out 0. Time is a ratio "
            "to the first variant; memory is the most of a run."
        ),
    ]
    if not rows:
        return [*parts, page.missing("everything, as no run is done")]
    parts.append(page.table(*reversed(summary_table(rows))))
    if max(len(row["seeds"]) for row in rows) == 1:
        parts.append(page.caution("One seed each: nothing follows from one seed."))
    elif any(len(row["seeds"]) == 1 for row in rows):
        parts.append(page.caution("Nothing follows for a variant with one seed."))
    if any((run.get("jobs") or 1) > 1 for run in runs):
        parts.append(
            page.caution("Runs shared the machine with others: read seconds and memory with care.")
        )
    for run in runs:
        if run.get("failed"):
            why = run["failed"].removeprefix("error: ")
            parts.append(page.caution(f"{label(run)}, seed {run['seed']}, diverged: {why}"))
    return parts
