"""metrics.json: lines that any parser reads, and what a resumed run leaves of them."""

import itertools
import json
import os

from detectron2.utils.events import JSONWriter

from ..utils.files import written_whole


class StrictJSONWriter(JSONWriter):
    """Detectron2's, but with null in the place of NaN and infinity, which JSON does not have."""

    def __init__(self, json_file):
        super().__init__(json_file)
        self._file_handle = _StrictLines(self._file_handle)


class _StrictLines:
    """A file that is given JSON as Python writes it."""

    def __init__(self, file):
        self._file = file

    def write(self, line):
        row = json.loads(line, parse_constant=lambda name: None)
        self._file.write(f"{json.dumps(row)}\n")

    def __getattr__(self, name):
        return getattr(self._file, name)


def cut(path: str, start_iter: int, end: int | None = None) -> int:
    """Takes out what a resumed run will write again, and a line that is torn.

    Args:
        path: metrics.json; need not exist.
        start_iter: the first iteration to come.
        end: where a shorter run ended; its evaluation stays if this one begins there.

    Returns:
        The newest iteration before it in the file; -1 without one.
    """
    if not os.path.isfile(path):
        return -1
    with open(path, errors="replace") as f:
        lines = f.readlines()
    rows = {line: _row(line) for line in lines}
    kept = [line for line in lines if _stays(rows[line], start_iter, end)]
    if kept != lines:
        with written_whole(path) as f:
            f.writelines(kept)
    before = [rows[line]["iteration"] for line in kept if rows[line]["iteration"] < start_iter]
    return max(before, default=-1)


def put_aside(path: str):
    """Renames the file of a run that left no checkpoint, for one that is resumed from nothing.

    Args:
        path: metrics.json; need not exist. It becomes metrics.json.1, or the next number.
    """
    if os.path.isfile(path) and os.path.getsize(path):
        free = next(n for n in itertools.count(1) if not os.path.exists(f"{path}.{n}"))
        os.replace(path, f"{path}.{free}")


def _row(line):
    try:
        row = json.loads(line)
        return row if line.endswith("\n") and isinstance(row.get("iteration"), int) else None
    except (ValueError, AttributeError):
        return None


def _stays(row, start_iter, end):
    if row is None:
        return False
    return row["iteration"] < start_iter or (
        row["iteration"] == start_iter == end and "total_loss" not in row
    )
