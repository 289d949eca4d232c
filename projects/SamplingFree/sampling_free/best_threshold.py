"""Where to cut the scores for showing detections: the threshold of best F1 on a labelled set.

Trained without sampling heuristics, a detector gives lower scores than usual ("confidence
shifting"), so the customary 0.5 may show nothing. AP needs no threshold; a picture does.

Legend: D detections, G ground-truth objects. Detections with score >= threshold are shown, so
detections that tie are shown or hidden together.
"""

import contextlib
import io
import json
import os
from dataclasses import asdict, dataclass, field
from typing import Optional

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .errors import BadInput

FILE_NAME = "best_threshold.json"

# Shown where no threshold could be measured (never evaluated, nothing labelled, nothing found).
# A guess, no more: low enough that a half-trained model shows something.
FALLBACK_THRESHOLD = 0.1


def best_f1(scores, is_correct, num_ground_truth):
    """The threshold of best F1 = 2 TP / (shown + G) over all thresholds.

    Args:
        scores (ndarray): (D,) any real numbers.
        is_correct (ndarray): (D,) bool, whether a detection matches an object of its own.
        num_ground_truth (int): G, objects that should be found.

    Returns:
        dict: `threshold`, `f1`, `precision`, `recall`, each in [0, 1] with scores in [0, 1].
        Of equal F1 the highest threshold is taken. `threshold` is None where no detection is
        correct; everything is None where G is 0.
    """
    if num_ground_truth == 0:
        return {"threshold": None, "f1": None, "precision": None, "recall": None}
    order = np.argsort(-scores, kind="stable")
    scores, true_positives = scores[order], np.cumsum(is_correct[order])
    if not is_correct.any():
        return {"threshold": None, "f1": 0.0, "precision": 0.0, "recall": 0.0}
    # A cut is possible only behind the last of equal scores.
    cuts = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
    true_positives, shown = true_positives[cuts], cuts + 1
    f1 = 2 * true_positives / (shown + num_ground_truth)
    best = int(np.argmax(f1))
    return {
        "threshold": float(scores[cuts[best]]),
        "f1": float(f1[best]),
        "precision": float(true_positives[best] / shown[best]),
        "recall": float(true_positives[best] / num_ground_truth),
    }


@dataclass
class BestThreshold:
    """The threshold of best F1 over all classes together, and what it achieves.

    Args:
        threshold (float or None): show detections with score >= threshold. None: not measurable.
        f1, precision, recall (float or None): in [0, 1], at this threshold.
        iou (float): overlap in (0, 1] from which a detection counts as correct.
        num_ground_truth (int): objects of all classes; those marked as crowd are not counted.
        per_class (dict[str, dict]): the same measures by class name, each class at its own best
            threshold, with `num_ground_truth` and `num_detections`.
    """

    threshold: Optional[float]
    f1: Optional[float]
    precision: Optional[float]
    recall: Optional[float]
    iou: float
    num_ground_truth: int = 0
    per_class: dict = field(default_factory=dict)

    @property
    def display_threshold(self):
        """float: the threshold, or `FALLBACK_THRESHOLD` where none could be measured."""
        return FALLBACK_THRESHOLD if self.threshold is None else self.threshold

    def save(self, path):
        """Write all fields as JSON; floats survive exactly."""
        with open(path, "w") as f:
            json.dump(asdict(self), f, indent=2)
            f.write("\n")

    @classmethod
    def load(cls, path):
        """Read what :meth:`save` wrote.

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


def best_f1_threshold(coco_gt, detections, iou=0.5, class_names=None):
    """Measure :class:`BestThreshold`, with pycocotools deciding which detections are correct.

    As in the AP: at most 100 detections per image and class; detections on crowds do not count.
    Unlike in the AP, a detection of a class that has no object in the set counts as wrong.

    Args:
        coco_gt (COCO): ground truth; left unchanged.
        detections (list[dict]): COCO results with `image_id`, `category_id`, `bbox` (x, y, width,
            height in pixels of the original image) and `score`.
        iou (float): overlap in (0, 1] for a match.
        class_names (dict[int, str]): by category id; default: the names in `coco_gt`.

    Returns:
        BestThreshold
    """
    names = {c["id"]: c["name"] for c in coco_gt.dataset.get("categories", [])}
    names.update(class_names or {})
    by_class = _match(coco_gt, detections, iou)
    all_scores = np.concatenate([np.zeros(0), *(scores for scores, _, _ in by_class.values())])
    all_correct = np.concatenate([np.zeros(0, bool), *(c for _, c, _ in by_class.values())])
    num_ground_truth = sum(n for _, _, n in by_class.values())
    return BestThreshold(
        **best_f1(all_scores, all_correct, num_ground_truth),
        iou=float(iou),
        num_ground_truth=num_ground_truth,
        per_class={
            names[category]: {
                **best_f1(scores, is_correct, n),
                "num_ground_truth": n,
                "num_detections": len(scores),
            }
            for category, (scores, is_correct, n) in by_class.items()
        },
    )


def threshold_from_evaluator(coco_evaluator, iou=0.5):
    """:func:`best_f1_threshold` of what a Detectron2 `COCOEvaluator` has just evaluated.

    Args:
        coco_evaluator (COCOEvaluator): after `evaluate()`; of several processes, the main one's.
        iou (float): overlap in (0, 1] for a match.

    Raises:
        BadInput: the evaluator has no output folder, hence kept no detections.
    """
    folder = coco_evaluator._output_dir
    path = folder and os.path.join(folder, "coco_instances_results.json")
    if not path or not os.path.isfile(path):
        raise BadInput(
            f"dataloader.evaluator: no detections were kept (output_dir is {folder!r}); set "
            "dataloader.evaluator.output_dir, the best threshold is measured on them"
        )
    with open(path) as f:
        detections = json.load(f)
    # The file holds the data set's own category ids, the metadata counts classes from 0.
    classes = coco_evaluator._metadata.get("thing_classes", [])
    to_class = coco_evaluator._metadata.get("thing_dataset_id_to_contiguous_id")
    to_class = to_class or {i: i for i in range(len(classes))}
    class_names = {category: classes[i] for category, i in to_class.items() if i < len(classes)}
    return best_f1_threshold(coco_evaluator._coco_api, detections, iou, class_names)


def _match(coco_gt, detections, iou):
    """dict: category id -> (scores (D,), is_correct (D,) bool, G) without what is ignored."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        # COCOeval writes into the annotations and takes a match with id 0 for none: copy, renumber.
        coco.dataset = {
            "images": coco_gt.dataset["images"],
            "categories": coco_gt.dataset.get("categories", []),
            "annotations": [
                {"iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3], **a, "id": i}
                for i, a in enumerate(coco_gt.dataset.get("annotations", []), start=1)
            ],
        }
        coco.createIndex()
        keys = ("image_id", "category_id", "bbox", "score")
        # loadRes fails on an empty list.
        results = COCO()
        results.createIndex()
        if detections:
            results = coco.loadRes([{k: d[k] for k in keys} for d in detections])
        evaluation = COCOeval(coco, results, "bbox")
        evaluation.params.iouThrs = np.array([iou])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
    images_of = {category: [] for category in coco.getCatIds()}
    for image in filter(None, evaluation.evalImgs):
        images_of[image["category_id"]].append(image)
    by_class = {}
    for category, images in images_of.items():
        scores = np.array([s for e in images for s in e["dtScores"]], dtype=float)
        is_correct = np.array([m > 0 for e in images for m in e["dtMatches"][0]], dtype=bool)
        counts = ~np.array([x for e in images for x in e["dtIgnore"][0]], dtype=bool)
        num_ground_truth = sum(int(np.sum(e["gtIgnore"] == 0)) for e in images)
        by_class[category] = scores[counts], is_correct[counts], num_ground_truth
    return by_class
