"""Where to cut the scores for showing detections: the threshold of best F1 on a labeled set.

Trained without sampling heuristics, a detector gives lower scores than usual ("confidence
shifting"), so the customary 0.5 may show nothing. AP needs no threshold; a picture does. Who
needs a certain precision takes the lowest threshold that has it.

Legend: D detections, G ground-truth objects, T different scores. Detections with
score >= threshold are shown, so detections that tie are shown or hidden together.
"""

import json
import os
from dataclasses import asdict, dataclass, field

import numpy as np
from detectron2.evaluation import COCOEvaluator
from tabulate import tabulate

from ..utils.errors import BadInput
from ..utils.files import write_json
from .matching import Matches, all_classes, matches_from_evaluator

FILE_NAME = "best_threshold.json"

# Shown where no threshold could be measured (never evaluated, nothing labeled, nothing found).
# A guess, no more: low enough that a half-trained model shows something.
FALLBACK_THRESHOLD = 0.1

MEASURES = ("threshold", "precision", "recall", "f1")


def precision_recall(
    scores: np.ndarray, is_correct: np.ndarray, num_ground_truth: int
) -> dict[str, np.ndarray]:
    """Precision, recall and F1 = 2 TP / (shown + G) at every threshold that is a score.

    Args:
        scores: (D,) any real numbers.
        is_correct: (D,) bool, whether a detection matches an object of its own.
        num_ground_truth: G, objects that should be found.

    Returns:
        `threshold`, falling, `precision`, `recall` and `f1`, each (T,);
        T is 0 where G is 0, as there is no recall then.
    """
    order = np.argsort(-scores, kind="stable")
    scores, true_positives = scores[order], np.cumsum(is_correct[order])
    # A cut is possible only behind the last of equal scores.
    cuts = np.flatnonzero(np.diff(scores, append=-np.inf)) if num_ground_truth else []
    cuts = np.asarray(cuts, dtype=int)
    true_positives, shown = true_positives[cuts], cuts + 1
    return {
        "threshold": scores[cuts],
        "precision": true_positives / shown,
        "recall": true_positives / max(num_ground_truth, 1),
        "f1": 2 * true_positives / (shown + num_ground_truth),
    }


def best_f1(scores: np.ndarray, is_correct: np.ndarray, num_ground_truth: int) -> dict:
    """The threshold of best F1 over all thresholds.

    Args:
        scores, is_correct, num_ground_truth: as in :func:`precision_recall`.

    Returns:
        `threshold`, `f1`, `precision`, `recall`, each in [0, 1] with scores in [0, 1].
        Of equal F1 the highest threshold is taken. `threshold` is None where no detection is
        correct; everything is None where G is 0.
    """
    if num_ground_truth == 0:
        return dict.fromkeys(MEASURES)
    if not is_correct.any():
        return {"threshold": None, "f1": 0.0, "precision": 0.0, "recall": 0.0}
    curve = precision_recall(scores, is_correct, num_ground_truth)
    return _at(curve, np.argmax(curve["f1"]))


def recall_at_precision(
    scores: np.ndarray, is_correct: np.ndarray, num_ground_truth: int, precision: float
) -> dict:
    """The lowest threshold, hence the one of most recall, that has a wanted precision.

    Args:
        scores, is_correct, num_ground_truth: as in :func:`precision_recall`.
        precision: in (0, 1], at least so much.

    Returns:
        As of :func:`best_f1`; everything is None where no threshold is that precise.
    """
    curve = precision_recall(scores, is_correct, num_ground_truth)
    reached = np.flatnonzero(curve["precision"] >= precision)
    return _at(curve, reached[-1]) if len(reached) else dict.fromkeys(MEASURES)


def _at(curve, i):
    return {measure: float(values[i]) for measure, values in curve.items()}


@dataclass
class BestThreshold:
    """The threshold of best F1 over all classes together, and what it achieves.

    Args:
        threshold: show detections with score >= threshold. None: not measurable.
        f1, precision, recall: in [0, 1], at this threshold.
        iou: overlap in (0, 1] from which a detection counts as correct.
        num_ground_truth: objects of all classes; those marked as crowd are not counted.
        per_class: the same measures by class name, each class at its own best
            threshold, with `num_ground_truth` and `num_detections`.
        wanted_precision: in (0, 1]; the thresholds are the lowest with at least
            this precision. None: those of best F1.
    """

    threshold: float | None
    f1: float | None
    precision: float | None
    recall: float | None
    iou: float
    num_ground_truth: int = 0
    per_class: dict = field(default_factory=dict)
    wanted_precision: float | None = None

    @property
    def display_threshold(self) -> float:
        """The threshold, or `FALLBACK_THRESHOLD` where none could be measured."""
        return FALLBACK_THRESHOLD if self.threshold is None else self.threshold

    def table(self) -> str:
        """A row for each class and one for all; instead of a threshold, why there is none."""
        num_detections = sum(row["num_detections"] for row in self.per_class.values())
        together = {**vars(self), "num_detections": num_detections}
        cells = []
        for name, row in [*self.per_class.items(), ("all classes", together)]:
            counts = row["num_ground_truth"], row["num_detections"]
            if row["threshold"] is None:
                measures = [self._why_none(*counts), "-", "-", "-"]
            else:
                measures = [f"{row['threshold']:.4f}", *(f"{row[m]:.3f}" for m in MEASURES[1:])]
            cells.append([name, *measures, *counts])
        head = ["class", "threshold", "precision", "recall", "F1", "objects", "detections"]
        align = ["left", *["right"] * (len(head) - 1)]
        return tabulate(cells, head, colalign=align, disable_numparse=True)

    def _why_none(self, num_ground_truth, num_detections):
        if num_ground_truth == 0:
            return "no object"
        if num_detections == 0:
            return "no detection"
        wanted = self.wanted_precision
        return "none correct" if wanted is None else f"{wanted:g} never reached"

    def save(self, path: str | os.PathLike):
        """Writes all fields as JSON; floats survive exactly."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "BestThreshold":
        """Reads what :meth:`save` wrote.

        Raises:
            BadInput: the file is absent, unreadable or holds something else.
        """
        try:
            with open(path) as f:
                best = cls(**json.load(f))
            best.display_threshold + best.iou  # numbers, or a TypeError
        except (OSError, ValueError, TypeError) as e:
            raise BadInput(
                f"{os.fspath(path)}: not a file of the best threshold ({e}); evaluate again to "
                "write it, or give --confidence-threshold"
            ) from e
        return best


def pick_threshold(
    by_class: dict[str, Matches], iou: float, precision: float | None = None
) -> BestThreshold:
    """Picks the threshold of each class, and the one of all classes together.

    Args:
        by_class: by class name.
        iou: overlap in (0, 1] at which they were matched.
        precision: in (0, 1], the precision wanted; default: the best F1.
    """

    def pick(matches):
        return best_f1(*matches) if precision is None else recall_at_precision(*matches, precision)

    together = all_classes(by_class)
    return BestThreshold(
        **pick(together),
        iou=float(iou),
        num_ground_truth=together.num_ground_truth,
        per_class={
            name: {
                **pick(matches),
                "num_ground_truth": matches.num_ground_truth,
                "num_detections": len(matches.scores),
            }
            for name, matches in by_class.items()
        },
        wanted_precision=precision,
    )


def threshold_from_evaluator(coco_evaluator: COCOEvaluator, iou: float = 0.5) -> BestThreshold:
    """The thresholds of best F1 of what a Detectron2 `COCOEvaluator` has just evaluated.

    Args:
        coco_evaluator: after `evaluate()`; of several processes, the main one's.
        iou: overlap in (0, 1] for a match.

    Raises:
        BadInput: the evaluator has no output folder, hence kept no detections.
    """
    return pick_threshold(matches_from_evaluator(coco_evaluator, iou), iou)
