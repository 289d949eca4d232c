#!/usr/bin/env python
"""Puts the tables of results/*.json and *.csv into the documentation, between its markers.

    python dev/render_tables.py            # rewrites README.md, MODEL_ZOO.md and docs/
    python dev/render_tables.py --check    # exit code 1 if a table is not what the results say

A marker is <!-- table NAME FILE --> and <!-- end -->, each on a line of its own; several files are
joined by +.
"""

import argparse
import ast
import csv
import json
import os
import re
import sys
from pathlib import Path

from tabulate import tabulate

from bench_tables import BENCH_TABLES
from detector_names import DETECTORS
from reliability_tables import RELIABILITY_TABLES

DOCUMENTS = [
    "README.md",
    "MODEL_ZOO.md",
    "docs/guides.md",
    "docs/performance.md",
    "docs/reliability.md",
]
# Written too, and not checked: the code's sizes change with every commit.
SIZES = "CONTRIBUTING.md"
MARKER = re.compile(r"(<!-- table (\w+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
VARIANTS = {
    "_bce": "BCE, measured prior, not guided",
    "_focal": "focal loss (Detectron2's {})",
    "_sampled": "biased sampling (Detectron2's {})",
    "": "full method: measured prior, guided loss",
}


def detector(config):
    """The detector of a config, from its file name."""
    name = os.path.basename(config)
    return next(title for stem, title in DETECTORS.items() if name.startswith(stem))


def variant(config):
    """What a config of a comparison is called in a table."""
    name = os.path.splitext(config)[0]
    text = next(text for suffix, text in VARIANTS.items() if name.endswith(suffix))
    title = detector(config)
    if title in ("ATSS", "PAA"):
        text = text.replace("Detectron2's {}", "{} as published")
    return text.format(title)


def final(records):
    """One row for each final run; the first record is of those on which a rate was chosen."""
    chosen_on = [_splits(r) for r in records[:1]]
    rows = [
        [variant(r["config"]), r["learning_rate"], r["seed"]]
        + [r.get(key, "not finite") for key in ("bbox/AP", "bbox/AP50")]
        for r in records
        if _splits(r) not in chosen_on
    ]
    return tabulate(
        rows,
        ["variant", "learning rate", "seed", "AP", "AP50"],
        tablefmt="github",
        floatfmt=("", "g", "", ".1f", ".1f"),
    )


def _splits(record):
    return record["train_split"], record["test_split"]


def rates(records):
    """AP on the validation split for each variant (row) and learning rate (column)."""
    tried = [r for r in records if _splits(r) == _splits(records[0])]
    columns = sorted({r["learning_rate"] for r in tried})
    rows = {}
    for r in tried:
        row = rows.setdefault(variant(r["config"]), dict.fromkeys(columns, "-"))
        row[r["learning_rate"]] = f"{r['bbox/AP']:.1f}" if "bbox/AP" in r else "not finite"
    return tabulate(
        [[name, *row.values()] for name, row in rows.items()],
        ["AP on val", *(f"rate {c:g}" for c in columns)],
        tablefmt="github",
        disable_numparse=True,
    )


def demo(records):
    """One row for each seed of the demo."""
    rows = [[r["seed"], r["bbox/AP"], r["bbox/AP50"]] for r in records]
    return tabulate(rows, ["seed", "AP", "AP50"], tablefmt="github", floatfmt=("", ".1f", ".1f"))


def quick(records):
    """One row for each detector of the quick runs: mean over the seeds, smallest and largest."""
    groups = {}
    for r in records:
        groups.setdefault(r["config"], []).append(r)
    rows = []
    for config, runs in groups.items():
        cells = [
            _spread([r[key] for r in runs if key in r])
            for key in ("bbox/AP", "bbox/AP50", "segm/AP")
        ]
        command = f"`python train_net.py --config-file {config}`"
        title = detector(config) + (", focal loss" if "_focal" in config else "")
        finished = [r for r in runs if "bbox/AP" in r]
        seeds = len(runs) if len(finished) == len(runs) else f"{len(finished)} of {len(runs)}"
        rows.append([title, seeds, *cells, command])
    head = ["detector", "seeds", "box AP", "box AP50", "mask AP", "command"]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def _spread(values):
    if not values:
        return ""
    mean = sum(values) / len(values)
    return f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})" if values[1:] else f"{mean:.1f}"


def published(rows):
    """What others published beside what was measured here, and the command to measure it."""
    table = []
    for r in rows:
        numbers = ", ".join(f"{key} {value:.1f}" for key, value in r.get("published", {}).items())
        source = f" ({r['source']})" if numbers else ""
        command = f"`python train_net.py --config-file {r['config']} --num-gpus 8`"
        cells = [r["detector"], r["variant"], r["recipe"], numbers + source]
        table.append([*cells, r.get("measured", ""), command])
    head = ["detector", "variant", "recipe", "published", "measured here", "command"]
    return tabulate(table, head, tablefmt="github", disable_numparse=True)


def guides(records):
    """A row for each guide: r after so many iterations, a median of 20, and AP at the end."""
    columns = sorted({x["iterations"] for r in records for x in r.get("curves", [])})
    rows = []
    for r in records:
        curves = r.get("curves", [])
        ratios = {x["iterations"]: x["guide/r"] for x in curves if x.get("guide/r") is not None}
        cells = [f"{ratios[c]:.3g}" if c in ratios else "-" for c in columns]
        guide = r["override"].partition("=")[2]
        ap = f"{r['bbox/AP']:.1f}" if "bbox/AP" in r else "not finite"
        rows.append([f"`{guide}`", *cells, ap])
    head = ["guide", *(f"r at {c}" for c in columns), "AP"]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def paa_training(records):
    """A row for each run of PAA: its foreground while it learns over what was counted."""
    runs = [r for r in records if detector(r["config"]) == "PAA" and r.get("counted_pos_anchors")]
    columns = sorted({x["iterations"] for r in runs for x in r["curves"]})
    rows = []
    for r in runs:
        counted = r["counted_pos_anchors"]
        found = {x["iterations"]: x["num_pos_anchors"] / counted for x in r["curves"]}
        cells = [f"{found[c]:.2f}" if c in found else "-" for c in columns]
        rows.append([f"`{r['config']}`, seed {r['seed']}", f"{counted:.1f}", *cells])
    head = ["run", "counted", *(f"at {c}" for c in columns)]
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def rooms(rows):
    """A row for each room of the package, lowest first: what it is for, files and lines."""
    return tabulate(
        [[f"`{r['room']}`", r["purpose"], r["files"], r["lines"]] for r in rows],
        ["room", "what is in it", "files", "lines, about"],
        tablefmt="github",
    )


def read_rooms(package):
    """The rooms of the package in their order of imports, with the first line of each."""
    path = Path(__file__).resolve().parents[1] / "tests" / "package" / "test_rooms.py"
    tree = ast.parse(path.read_text())
    order = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "ROOMS"
    )
    for room in order:
        files = sorted(Path(package, room).rglob("*.py")) or [Path(package, f"{room}.py")]
        texts = [f.read_text() for f in files]
        first = Path(package, room, "__init__.py")
        doc = ast.get_docstring(ast.parse((first if first.exists() else files[0]).read_text()))
        yield {
            "room": room,
            "purpose": doc.splitlines()[0],
            "files": len(files),
            "lines": round(sum(text.count("\n") for text in texts), -2),
        }


def comparison(rows):
    """A row for each variant of a comparison, from the summary that tools/compare.py writes."""
    # Detectron2 takes seconds to import.
    from sampling_free.comparison.table import markdown, summary_table

    return markdown(*summary_table(rows))


TABLES = {
    f.__name__: f
    for f in (
        final,
        rates,
        demo,
        quick,
        published,
        guides,
        paa_training,
        comparison,
        rooms,
    )
}
TABLES |= BENCH_TABLES | RELIABILITY_TABLES
# Of the lists in a file; else "runs".
KEYS = {"comparison": "summary", **{name: name for name in RELIABILITY_TABLES}}


def read(path, key):
    """The list in a file of results.

    Args:
        path (str): JSON, a list of records or what tools/compare.py writes; CSV, whose rows are
            dicts of text; or the folder of the package.
        key (str): "runs" or "summary" of what tools/compare.py writes, or another list of a file
            that has several.
    """
    if os.path.isdir(path):
        return list(read_rooms(path))
    with open(path, newline="") as f:
        if path.endswith(".csv"):
            return list(csv.DictReader(f))
        content = json.load(f)
    if key == "summary" and not isinstance(content, dict):
        sys.exit(f"{path}: has no summary; run tools/compare.py with --output anew")
    found = content[key] if isinstance(content, dict) else content
    if isinstance(found, dict):  # of the long tests: a row for each name
        return [{"name": name, **found[name]} for name in sorted(found)]
    return found


def render(text):
    """``text`` with every table between markers written anew."""

    def table(match):
        begin, name, paths, end = match.groups()
        key = KEYS.get(name, "runs")
        records = [record for path in paths.split("+") for record in read(path, key)]
        return f"{begin}{TABLES[name](records)}\n{end}"

    return MARKER.sub(table, text)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    stale = []
    for path in DOCUMENTS if args.check else [*DOCUMENTS, SIZES]:
        with open(path) as f:
            text = f.read()
        new = render(text)
        if new != text:
            stale.append(path)
            if not args.check:
                with open(path, "w") as f:
                    f.write(new)
    if args.check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run python dev/render_tables.py")


if __name__ == "__main__":
    main()
