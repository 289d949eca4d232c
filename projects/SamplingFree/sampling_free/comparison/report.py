"""A comparison as one HTML page that needs nothing beside it.

    write_report("output/compare/bccd.html", runs)

`report.html` is the page, `report_sections` says what is shown, `report_figures` draws it,
`report_curves` has the numbers behind it.
"""

import os

from jinja2 import Environment, PackageLoader

from ..utils.files import written_whole
from .report_sections import Section, Variant, sections_of
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
    templates = Environment(loader=PackageLoader(__package__, "."), autoescape=True)
    page = templates.get_template("report.html").render(
        title=_title(runs),
        names=", ".join(v.name for v in variants) or "no run yet",
        facts=_facts(runs),
        sections=[_result(runs), *(sections_of(variants, folder) if variants else [])],
    )
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with written_whole(path) as f:
        f.write(page)


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


def _result(runs):
    """The summary, and what to bear in mind with it."""
    rows = summarize(runs)
    text = (
        "AP in percent: mean ± standard deviation (smallest to largest) over the seeds. The "
        "difference to the first variant is taken seed by seed, with its 95 % interval by "
        "Student's t: it says something only where the interval leaves out 0. Time is a ratio "
        "to the first variant; memory is the most of a run."
    )
    if not rows:
        return Section("Result", text, missing=["everything, as no run is done"])
    cautions = []
    if max(len(row["seeds"]) for row in rows) == 1:
        cautions.append("One seed each: nothing follows from one seed.")
    elif any(len(row["seeds"]) == 1 for row in rows):
        cautions.append("Nothing follows for a variant with one seed.")
    if any((run.get("jobs") or 1) > 1 for run in runs):
        cautions.append("Runs shared the machine with others: read seconds and memory with care.")
    for run in runs:
        if run.get("failed"):
            why = run["failed"].removeprefix("error: ")
            cautions.append(f"{label(run)}, seed {run['seed']}, diverged: {why}")
    head, cells = summary_table(rows)
    cells = [[row[0], *map(_unbroken, row[1:])] for row in cells]
    return Section("Result", text, table=[head, *cells], cautions=cautions)


def _unbroken(text):
    """Only what is in brackets has a line of its own."""
    return text.replace(" (", "\n(").replace(" ", "\N{NO-BREAK SPACE}")
