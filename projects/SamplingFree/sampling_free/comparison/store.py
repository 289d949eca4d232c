"""The files of a comparison: one JSON for each run, and one with the records of all.

A file is written beside its place and then moved there, so that it is whole at any moment.
"""

import json
import os

from ..errors import BadInput
from .runs import is_record_of
from .summary import GROUP

RESULT = "result.json"  # in the folder of a run
PLAN = "run.json"  # there too, from its first moment on: what is being run
BULK = ("course", "score_histograms", "precision_recall", "folder")  # stays in the run's folder


def write_json(path, value, indent=1):
    """Writes a file as a whole.

    Args:
        path (str): its folder is made.
        value (object): without NaN, which JSON does not have.
        indent (int or None): None for one long line.
    """
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w") as f:
        json.dump(value, f, indent=indent, allow_nan=False)
        f.write("\n")
    os.replace(temporary, path)


def read_json(path):
    """The content of a file; None if it is absent, torn or unreadable."""
    try:
        with open(path) as f:
            return json.load(f)
    except (OSError, ValueError):
        return None


def result_of(planned):
    """The record of a run that is done.

    Args:
        planned (Planned):

    Returns:
        dict or None: None if it is absent, torn, unfinished or of another run.
    """
    record = read_json(os.path.join(planned.folder, RESULT))
    is_whole = isinstance(record, dict) and record.get("complete") is True
    if is_whole and is_record_of(record, planned.identity):
        return {**record, "folder": planned.folder}
    return None


def why_repeated(planned):
    """What is wrong with the folder of a run that is not done, in words.

    Returns:
        str or None: None if nothing has been there.
    """
    path = os.path.join(planned.folder, RESULT)
    record = read_json(path)
    if os.path.exists(path):
        if not isinstance(record, dict) or record.get("complete") is not True:
            return f"{path} is torn"
        return f"{path} is of another run: {_difference(record, planned.identity)}"
    begun = read_json(os.path.join(planned.folder, PLAN))
    if begun == planned.identity:
        return f"{planned.folder} is unfinished"
    rest = [name for name in os.listdir(planned.folder) if name != "lock.json"]
    return f"{planned.folder} holds the files of another run" if rest else None


def _difference(record, identity):
    """The first thing in which a record is not of this run."""
    for key, value in identity.items():
        if record.get(key) != value and key != "digest":
            return f"{key} was {record.get(key)!r}, is {value!r}"
    return "the config has changed"


class Output:
    """The file of all records; other runs in it stay.

    Args:
        path (str or None): None for no file.
    """

    def __init__(self, path):
        self.path = path
        self._content()  # a file of something else is said before the first run

    def _content(self):
        """tuple: the records in the file, and its summary or None."""
        if not self.path or not os.path.exists(self.path):
            return [], None
        content = read_json(self.path)
        runs = content.get("runs") if isinstance(content, dict) else content
        if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
            raise BadInput(
                f"{self.path}: holds no records of runs; it is torn or of something else: move it "
                "away, what is done is taken from the folders of the runs"
            )
        return runs, content.get("summary") if isinstance(content, dict) else None

    def find(self, planned):
        """The record of a run, or None."""
        return next((r for r in self._content()[0] if is_record_of(r, planned.identity)), None)

    def write(self, records, summary=None):
        """Puts records into the file; nothing is written if nothing is new.

        Args:
            records (list[dict]): of the runs that are done.
            summary (list[dict] or None): its rows; None for the ones in the file.
        """
        if not self.path:
            return
        old, old_summary = self._content()
        new = {}
        for record in records:
            new[_key(record)] = {k: v for k, v in record.items() if k not in BULK}
        is_old = all(record in old for record in new.values())
        if is_old and (old_summary is None or summary in (None, old_summary)):
            return
        others = [record for record in old if _key(record) not in new]
        rows = old_summary if summary is None else summary
        write_json(self.path, {"runs": others + list(new.values()), "summary": rows or []})


def _key(record):
    """What a record is of, whatever its config was then."""
    return (*(record.get(key) for key in (*GROUP, "seed")), *(record.get("overrides") or []))
