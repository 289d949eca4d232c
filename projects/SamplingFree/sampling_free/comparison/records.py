"""One JSON for each run in one folder: what a comparison of hundreds of runs keeps."""

import os

from ..utils.errors import BadInput
from ..utils.files import write_json
from .spec import is_record_of, respelt
from .store import BULK, read_json

DIGITS = 4  # significant ones, of the numbers of a course
KEPT = ("course",)  # of what stays in the run's folder otherwise


class Records:
    """A folder in the place of the one file of :class:`~.store.Output`.

    Several comparisons may write to it, also at once, and a later one takes from it what is done.

    Args:
        folder (str): is made when the first record is written.
    """

    def __init__(self, folder):
        self.folder = folder

    def find(self, planned):
        """The record of a run, or None."""
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


def read_records(folder: str) -> list[dict]:
    """All records in a folder.

    Args:
        folder:

    Returns:
        In the order of their file names.

    Raises:
        BadInput: a file is none, or the folder is absent.
    """
    if not os.path.isdir(folder):
        raise BadInput(f"{folder}: no such folder of records")
    records = []
    for name in sorted(os.listdir(folder)):
        if name.endswith(".json"):
            record = read_json(os.path.join(folder, name))
            if not isinstance(record, dict) or "digest" not in record:
                raise BadInput(f"{os.path.join(folder, name)}: is no record of a run; remove it")
            records.append(record)
    return records


def _rounded(values):
    return [float(f"{x:.{DIGITS}g}") if isinstance(x, float) else x for x in values]
