"""What a run has left in its folder, as numbers."""

import json
import math
import os
import re
import statistics

from ..utils.errors import BadInput

TASKS = ("bbox/", "segm/")
# Of these numbers of the training what was logged first, and after so many iterations.
CURVES = ("guide/r", "num_pos_anchors")
POINTS = (20, 40, 100, 200, 400)
COURSE = ("total_loss", "loss", "guide/", "monitor/")  # how the names begin
PICTURES = os.path.join("pictures", "overview.png")


def read_metrics(folder: str) -> list[dict]:
    """The lines of metrics.json, one for each iteration, in their order.

    A resumed run has written some iterations twice: the later numbers hold. A line that a killed
    process has torn is left out.

    Args:
        folder: of a run.

    Returns:
        Empty without the file.
    """
    rows = {}
    path = os.path.join(folder, "metrics.json")
    if os.path.exists(path):
        with open(path) as f:
            for line in f:
                try:
                    row = json.loads(line)
                    rows.setdefault(row["iteration"], {}).update(row)
                except (ValueError, KeyError, TypeError):
                    continue
    return [rows[i] for i in sorted(rows)]


def scores(numbers: dict):
    """The results of an evaluation: AP, AP50, AP of each class, ... in percent.

    Args:
        numbers: a line of metrics.json, or an evaluation.json.

    Returns:
        dict[str, float or None]: None for what is not a number, as AP of a class without objects.
        Without a single detection Detectron2 calculates nothing; AP is 0 then.
    """
    found = {key: finite(value) for key, value in numbers.items() if key.startswith(TASKS)}
    empty = [task for task in TASKS if found.get(f"{task}AP", 0.0) is None]
    return {**found, **{f"{task}{name}": 0.0 for task in empty for name in ("AP", "AP50", "AP75")}}


def finite(value):
    """``value``, or None if it is NaN or infinite, which JSON does not have."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def training_numbers(folder: str) -> dict:
    """What metrics.json and the other files of a training say.

    Args:
        folder: of the run.

    Returns:
        `seconds_per_iteration`, `gpu_memory_mib` (None on a CPU), `curves`,
        `counted_pos_anchors`, `course`, `score_histograms`, `pictures`; None for what is absent.
    """
    rows = read_metrics(folder)
    seconds = [row["time"] for row in rows if finite(row.get("time"))]
    memory = [row["max_mem_mb"] for row in rows if finite(row.get("max_mem_mb"))]
    return {
        "seconds_per_iteration": statistics.median(seconds) if seconds else None,
        "gpu_memory_mib": max(memory) if memory else None,
        "curves": curves(rows),
        "counted_pos_anchors": counted_pos_anchors(folder),
        "course": course(rows),
        "score_histograms": _read_json(folder, "score_histograms.json"),
        "pictures": PICTURES if os.path.exists(os.path.join(folder, PICTURES)) else None,
    }


def last_scores(folder):
    """:func:`scores` of the last evaluation in metrics.json; empty if there is none."""
    evaluated = [row for row in read_metrics(folder) if scores(row)]
    return scores(evaluated[-1]) if evaluated else {}


def curves(rows):
    """CURVES at POINTS and at the end, from the lines of a metrics.json.

    A line has the median of the last 20 iterations. What is not finite, as in a run that diverged,
    is None.
    """
    logged = [row for row in rows if any(key in row for key in CURVES)]
    chosen = [row for row in logged if row["iteration"] + 1 in POINTS or row is logged[-1]]
    return [
        {"iterations": row["iteration"] + 1, **{k: finite(row[k]) for k in CURVES if k in row}}
        for row in chosen
    ]


def course(rows: list[dict]) -> dict[str, list]:
    """Losses, guides and what the monitor measured, over the iterations.

    Args:
        rows: of :func:`read_metrics`.

    Returns:
        "iteration", and for each name as many numbers, None where there is none.
    """
    names = sorted({key for row in rows for key in row if key.startswith(COURSE)})
    kept = [row for row in rows if any(name in row for name in names)]
    return {
        "iteration": [row["iteration"] for row in kept],
        **{name: [finite(row.get(name)) for row in kept] for name in names},
    }


def counted_pos_anchors(folder):
    """Foreground anchors of an image as they were counted for the prior; None if they were not."""
    estimate = _read_json(folder, "prior.json")
    return estimate and estimate["num_foreground"] / estimate["num_images"]


def error_line(folder: str) -> str | None:
    """The last line of a run's output.txt that says what was wrong; None if none does.

    Args:
        folder: of the run.
    """
    with open(os.path.join(folder, "output.txt"), errors="replace") as f:
        lines = [line.strip() for line in f if "rror" in line.partition(":")[0]]
    return lines[-1] if lines else None


def without_folders(line: str) -> str:
    """A line with absolute paths cut down to file names: a record tells nothing of the machine.

    Args:
        line:
    """
    return re.sub(r"'/[^']*/([^'/]+)'", r"'\1'", line)


def read_evaluation(folder):
    """:func:`scores` of the evaluation.json of an evaluation without training.

    Raises:
        BadInput: there is none, or it has no box AP.
    """
    found = scores(_read_json(folder, "evaluation.json") or {})
    if not found:
        raise BadInput(f"{folder}: no evaluation was written")
    return found


def _read_json(folder, name):
    """The content of a file, None for a number that is not finite; None if it is absent or torn."""
    try:
        with open(os.path.join(folder, name)) as f:
            return json.load(f, parse_constant=lambda name: None)
    except (OSError, ValueError):
        return None
