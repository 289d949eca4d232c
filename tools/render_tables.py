#!/usr/bin/env python
"""Puts the tables of results/*.json into the documentation, between its markers.

    python tools/render_tables.py            # rewrites README.md
    python tools/render_tables.py --check    # exit code 1 if a table is not what the results say

A marker is <!-- table NAME FILE --> and <!-- end -->, each on a line of its own.
"""

import argparse
import json
import re
import sys

from tabulate import tabulate

DOCUMENTS = ["README.md"]
MARKER = re.compile(r"(<!-- table (\w+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
NAMES = {
    "": "full method: measured prior, guided loss",
    "_bce": "BCE, measured prior, not guided",
    "_focal": "focal loss (Detectron2's RetinaNet)",
}


def variant(config):
    """What a config of the comparison is called in a table."""
    return NAMES[re.sub(r".*_FPN|\.py", "", config)]


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


TABLES = {"final": final, "rates": rates, "demo": demo}


def render(text):
    """``text`` with every table between markers written anew."""

    def table(match):
        begin, name, path, end = match.groups()
        with open(path) as f:
            return f"{begin}{TABLES[name](json.load(f))}\n{end}"

    return MARKER.sub(table, text)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    stale = []
    for path in DOCUMENTS:
        with open(path) as f:
            text = f.read()
        new = render(text)
        if new != text:
            stale.append(path)
            if not args.check:
                with open(path, "w") as f:
                    f.write(new)
    if args.check and stale:
        sys.exit(f"out of date: {', '.join(stale)}; run python tools/render_tables.py")


if __name__ == "__main__":
    main()
