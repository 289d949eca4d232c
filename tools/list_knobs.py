#!/usr/bin/env python
"""Lists what a config has to be tuned against class imbalance: the knobs that act, with values.

    python tools/list_knobs.py --config-file configs/bccd/retinanet_R_18_FPN_focal.py

The constants of the method and the test settings come in blocks of their own.
"""

import argparse

from tabulate import tabulate

from sampling_free.cli import add_config_options, config_of, one_line_errors, parse
from sampling_free.knobs import list_knobs
from sampling_free.utils.errors import require_writable
from sampling_free.utils.files import write_json

TITLES = {
    "knobs": "Imbalance knobs",
    "constants": "Constants of the method and the detector",
    "test_settings": "Test settings",
}


def block(title, rows):
    """
    Args:
        title (str):
        rows (list[Knob]):

    Returns:
        str: a title with its table, or one line.
    """
    if not rows:
        return f"{title}: none."
    # Numbers as they are written in a config.
    rows = [(key, str(value), what) for key, value, what in rows]
    return f"{title}: {len(rows)}.\n" + tabulate(
        rows, ["key", "value", "what"], disable_numparse=True
    )


@one_line_errors
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_options(parser)
    parser.add_argument("--json", metavar="FILE", help="write the three lists there, too")
    args = parse(parser)

    require_writable("--json", args.json)
    found = list_knobs(config_of(args))
    print("\n\n".join(block(title, getattr(found, name)) for name, title in TITLES.items()))
    if args.json:
        lists = {k: [x._asdict() for x in rows] for k, rows in found._asdict().items()}
        write_json(args.json, lists)


if __name__ == "__main__":
    main()
