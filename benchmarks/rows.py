"""From the cases of a benchmark to the rows of its CSV file, each with device and versions."""

import argparse
import csv
import os
import warnings

import torch
from tabulate import tabulate
from tqdm import tqdm

from machine import device_name, versions
from sampling_free.cli import one_line_errors
from sampling_free.utils.errors import require_writable
from timing import HEAPS, in_own_process

NO_GPU = "no GPU"  # reason of an empty row


def arguments(doc, heaps):
    """The command line of a benchmark; ``heaps`` are those it takes by default."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, metavar="CSV", help="gets the rows")
    parser.add_argument("--devices", nargs="+", choices=["cpu", "cuda"], default=["cpu", "cuda"])
    parser.add_argument("--heaps", nargs="+", choices=list(HEAPS), default=heaps)
    parser.add_argument("--seconds", type=float, default=5, help="of a case, about")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--quick", action="store_true", help="small shapes, to try it")
    return parser.parse_args()


@one_line_errors
def run(doc, cases, measure, columns, heaps=tuple(HEAPS)):
    """The main function of a benchmark.

    Args:
        doc (str): what it says of itself.
        cases (callable): of the device and whether to be quick; gives a list of dicts.
        measure (callable): of a case, the device and the seconds it may take; gives a list of
            dicts. Both become columns.
        columns (list[str]): to be printed.
        heaps (sequence[str]): states of the CPU's allocator.
    """
    args = arguments(doc, heaps)
    require_writable("--output", args.output)
    rows = []
    for device in args.devices:
        todo = cases(device, args.quick)
        if device == "cuda" and not torch.cuda.is_available():
            rows += [{"device": device, **case, "reason": NO_GPU, **versions()} for case in todo]
            continue
        for heap in args.heaps if device == "cpu" else ["default"]:
            rows += in_own_process(heap, measure_all, measure, todo, device, heap, args)
    write_csv(args.output, merge(read_csv(args.output), rows))
    table = [[_cell(row.get(c, "")) for c in columns] for row in rows]
    print(tabulate(table, columns, tablefmt="github", disable_numparse=True))


def measure_all(measure, cases, device, heap, args):
    """The rows of all cases on a device."""
    # Of Detectron2's anchor generator; says nothing to a user.
    warnings.filterwarnings("ignore", message="torch.meshgrid")
    torch.set_num_threads(args.threads)
    rows = []
    for case in tqdm(cases, f"{device}, heap {heap}"):
        for row in measure(case, device, args.seconds):
            where = {"device": device, **({"heap": heap} if device == "cpu" else {})}
            rows.append({**where, **case, **row, "device_name": device_name(device), **versions()})
    return rows


def merge(old, new):
    """New rows, and the old ones of a device that was not measured now.

    Args:
        old, new (list[dict]): as :func:`run` makes them.

    Returns:
        list[dict]: the CPU's first.
    """
    measured = {row["device"] for row in new if row.get("reason") != NO_GPU}
    kept = [row for row in old if row["device"] not in measured and row.get("reason") != NO_GPU]
    has_rows = measured | {row["device"] for row in kept}
    empty = [row for row in new if row["device"] not in has_rows]
    rows = [row for row in new if row["device"] in measured] + kept + empty
    return sorted(rows, key=lambda row: row["device"])


def write_csv(path, rows):
    """Writes dicts; columns in the order in which they appear, numbers with six digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: _cell(v) for k, v in row.items()} for row in rows)


def read_csv(path):
    """list[dict[str, str]]: the rows of a file; none if it is missing."""
    if not os.path.exists(path):
        return []
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def _cell(value):
    return f"{value:.6g}" if isinstance(value, float) else value
