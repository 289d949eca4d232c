"""The files of a comparison: one JSON for each run, and one with the records of all."""

import json
import os

from ..utils.errors import BadInput
from ..utils.files import write_json
from .spec import is_record_of, is_same_run, respelt
from .summary import GROUP

RESULT = "result.json"  # in the folder of a run
PLAN = "run.json"  # there too, from its first moment on: what is being run
BULK = ("course", "score_histograms", "precision_recall", "folder")  # stays in the run's folder


def read_json(path):
    """The content of a file; None if it is absent, torn or unreadable."""
    try:
        with open(path) as f:
            return json.load(f)
    except (OSError, ValueError):
        return None


def result_of(planned) -> dict | None:
    """The record of a run that is done.

    Args:
        planned (Planned):

    Returns:
        None if it is absent, torn, unfinished or of another run.
    """
    record = _finished(planned.folder)
    if record and is_record_of(record, planned.identity):
        return {**respelt(record, planned.identity), "folder": planned.folder}
    return None


def require_not_another(planned):
    """Raises BadInput if a finished run of something else is in the folder."""
    record = _finished(planned.folder)
    if record and not is_record_of(record, planned.identity):
        path = os.path.join(planned.folder, RESULT)
        raise BadInput(f"{path} is of another run; move it away or give another --folder")


def has_begun(planned):
    """bool: whether the files in the folder are of this run."""
    begun = read_json(os.path.join(planned.folder, PLAN))
    return isinstance(begun, dict) and is_record_of(begun, planned.identity)


def why_repeated(planned) -> str | None:
    """What is wrong with the folder of a run that is not done, in words.

    Returns:
        None if nothing has been there.
    """
    path = os.path.join(planned.folder, RESULT)
    if os.path.exists(path):
        return f"{path} is torn"
    if has_begun(planned):
        return f"{planned.folder} is unfinished"
    rest = [name for name in os.listdir(planned.folder) if name != "lock.json"]
    return f"{planned.folder} holds the files of another run" if rest else None


def _finished(folder):
    """The record in a folder of any run; None if it is absent, torn or unfinished."""
    record = read_json(os.path.join(folder, RESULT))
    return record if isinstance(record, dict) and record.get("complete") is True else None


class Output:
    """The file of all records; other runs in it stay.

    Its summary is that of the last comparison to end: one file is for one comparison.

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
        records = (r for r in self._content()[0] if is_record_of(r, planned.identity))
        return next((respelt(r, planned.identity) for r in records), None)

    def write(self, records: list[dict], summary: list[dict] | None = None):
        """Puts records into the file; nothing is written if nothing is new.

        Args:
            records: of the runs that are done.
            summary: its rows; None for the ones in the file.

        Raises:
            BadInput: it cannot be written, as on a full disk.
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
        others = [r for r in old if not (_key(r) in new or _is_among(r, new.values()))]
        rows = old_summary if summary is None else summary
        try:
            write_json(self.path, {"runs": others + list(new.values()), "summary": rows or []})
        except OSError as e:
            raise BadInput(
                f"{self.path}: {e.strerror}; the records are in the folders of the runs"
            ) from e


def _key(record):
    """What a record is of, whatever was in its config then."""
    return (*(record.get(k) for k in (*GROUP, "seed")), *sorted(record.get("overrides") or []))


def _is_among(record, others):
    """Whether one of them is of the same run, spelt in another way."""
    return "digest" in record and any(is_same_run(record, other) for other in others)
