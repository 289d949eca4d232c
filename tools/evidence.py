#!/usr/bin/env python
"""Does the runs behind docs/evidence.md: what is missing of them, block by block.

    python tools/evidence.py                           # all; days on one CPU core
    python tools/evidence.py --only bccd-short bccd-long --jobs 2
    python tools/evidence.py --list                    # the blocks, as calls of tools/compare.py

Every block is one call of tools/compare.py, which keeps one JSON a run in results/evidence/ and
does nothing twice: stop it when you like, go on when you like, also on another machine, or start
several with other blocks. make evidence-report puts what there is into docs/evidence.md.
"""

import argparse
import shlex
import signal
import sys

import compare
from evidence_plan import FOLDER, RECORDS, blocks
from sampling_free.cli import one_line_errors
from sampling_free.comparison.records import read_records
from sampling_free.utils.errors import BadInput


def parse_args(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="BLOCK", help="default: all, in their order")
    parser.add_argument("--list", action="store_true", help="do nothing")
    parser.add_argument("--jobs", default=1, type=int, help="runs side by side")
    parser.add_argument("--records", default=RECORDS, help=f"default: {RECORDS}")
    parser.add_argument("--folder", default=FOLDER, help=f"of the runs, default: {FOLDER}")
    args = parser.parse_args(words)
    known = [block.name for block in blocks()]
    for name in args.only or []:
        if name not in known:
            raise BadInput(f"--only {name}: unknown block; known: {', '.join(known)}")
    return args


def evidence(args):
    """Does the blocks one after the other; returns a line for each run that failed."""
    failures = []
    for block in blocks():
        if args.only and block.name not in args.only:
            continue
        words = block.words(_records(args.records))
        if words is None:
            print(f"{block.name}: needs the runs of blocks before it")
            continue
        call = [*words, "--output", args.records, "--folder", args.folder]
        call += ["--jobs", str(args.jobs)]
        print(f"{block.name}: python tools/compare.py {shlex.join(call)}", flush=True)
        if not args.list:
            try:
                failures += compare.compare(compare.parse_args(call))
            except BadInput as error:  # the blocks after it may still do
                failures.append(f"{block.name}: {error}")
    return failures


def _records(folder):
    try:
        return read_records(folder)
    except BadInput:
        return []


@one_line_errors
def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the runs too
    failures = evidence(parse_args())
    for line in failures:
        print(f"error: {line}", file=sys.stderr)
    if failures:
        sys.exit(2)


if __name__ == "__main__":
    main()
