"""One JSON for each run in one folder, or packed in one file: what hundreds of runs keep."""

import gzip
import json
import os
import zlib

from ..utils.errors import BadInput
from ..utils.files import write_json, written_whole
from .spec import is_record_of, respelt
from .store import BULK, read_json

PACKED = ".jsonl.gz"  # a line for each record
DIGITS = 4  # significant ones, of the numbers of a course
KEPT = ("course",)  # of what stays in the run's folder otherwise


class Records:
    """A folder, or a file of :func:`pack`, in the place of the one of :class:`~.store.Output`.

    Several comparisons may write to it, also at once, and a later one takes from it what is done.

    Args:
        folder (str): is made when the first record is written; or a file of :func:`pack`.
    """

    def __init__(self, folder):
        self.folder = folder

    def find(self, planned):
        """The record of a run, or None."""
        if is_packed(self.folder):
            same = (r for r in read_records(self.folder) if is_record_of(r, planned.identity))
            record = next(same, None)
        else:
            record = read_json(self._path(planned.run.folder(planned.identity["digest"])))
        if isinstance(record, dict) and is_record_of(record, planned.identity):
            return {**respelt(record, planned.identity), "folder": planned.folder}
        return None

    def write(self, records: list[dict], summary=None):
        """Puts each record into its file.

        Args:
            records: of runs that are done, with their "folder".
            summary: not kept; it follows from the records.

        Raises:
            BadInput: a file cannot be written, as on a full disk.
        """
        if is_packed(self.folder):
            known = {r["digest"] for r in read_records(self.folder)}
            if any(record["digest"] not in known for record in records):
                raise BadInput(f"{self.folder}: is packed and takes no further runs; give a folder")
            return
        for record in records:
            kept = {k: v for k, v in record.items() if k not in BULK or k in KEPT}
            if kept.get("course"):
                kept["course"] = {name: _rounded(x) for name, x in kept["course"].items()}
            path = self._path(os.path.basename(record["folder"]))
            if read_json(path) == kept:
                continue
            try:
                write_json(path, kept, indent=None)
            except OSError as e:
                raise BadInput(
                    f"{path}: {e.strerror}; the records are in the folders of the runs"
                ) from e

    def _path(self, name):
        return os.path.join(self.folder, f"{name}.json")


def is_packed(path: str) -> bool:
    """Says whether a path is that of a file of :func:`pack`."""
    return path.rstrip("/").endswith(PACKED)


def pack(folder: str) -> str:
    """Packs a folder of records into one file beside it; the folder stays.

    Returns:
        The path of the file, which every reader of records takes too.

    Raises:
        BadInput: as :func:`read_records`.
    """
    lines = "".join(f"{json.dumps(record)}\n" for record in read_records(folder))
    path = folder.rstrip("/") + PACKED
    with written_whole(path, "wb") as f:
        f.write(gzip.compress(lines.encode(), mtime=0))  # the same bytes each time
    return path


def read_records(path: str) -> list[dict]:
    """Reads all records in a folder or in a file of :func:`pack`.

    Returns:
        In the order of the folder's file names.

    Raises:
        BadInput: a file or a line is no record, or the folder is absent.
    """
    if is_packed(path):
        return list(_unpacked(path.rstrip("/")))
    if not os.path.isdir(path):
        raise BadInput(f"{path}: no such folder of records")
    files = [os.path.join(path, x) for x in sorted(os.listdir(path)) if x.endswith(".json")]
    return [_require_record(read_json(file), f"{file}: is") for file in files]


def _unpacked(path):
    try:
        with gzip.open(path, "rt") as f:
            lines = f.read().splitlines()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as e:
        raise BadInput(f"{path}: cannot be read ({e}); pack the folder of records anew") from e
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        yield _require_record(record, f"{path}: line {number} is")


def _require_record(record, where):
    if not isinstance(record, dict) or "digest" not in record:
        raise BadInput(f"{where} no record of a run; remove it")
    return record


def _rounded(values):
    return [float(f"{x:.{DIGITS}g}") if isinstance(x, float) else x for x in values]
