"""Which detections are correct, class by class; pycocotools decides.

Legend: D detections, G ground-truth objects.
"""

import contextlib
import io
import json
import math
import os
from typing import NamedTuple

import numpy as np
from detectron2.evaluation import COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..utils.errors import BadInput

KEYS = ("image_id", "category_id", "bbox", "score")  # of a detection in COCO's result format


class Matches(NamedTuple):
    """The detections of one class, or of several, and which of them are correct.

    Attributes:
        scores (ndarray): (D,) any real numbers.
        is_correct (ndarray): (D,) bool, whether a detection matches an object of its own.
        num_ground_truth (int): G, objects that should be found.
    """

    scores: np.ndarray
    is_correct: np.ndarray
    num_ground_truth: int


def all_classes(by_class: dict[str, Matches]) -> Matches:
    """The detections of all classes as if they were one.

    Args:
        by_class: may be empty.
    """
    return Matches(
        np.concatenate([np.zeros(0), *(m.scores for m in by_class.values())]),
        np.concatenate([np.zeros(0, bool), *(m.is_correct for m in by_class.values())]),
        sum(m.num_ground_truth for m in by_class.values()),
    )


def match_detections(
    coco_gt: COCO,
    detections: list[dict],
    iou: float = 0.5,
    class_names: dict[int, str] | None = None,
) -> dict[str, Matches]:
    """Match boxes with objects as in the AP of COCO, at one overlap.

    At most 100 detections per image and class count; crowds and the detections on them do not.
    Unlike in the AP, a detection of a class that has no object in the set counts as wrong.

    Args:
        coco_gt: ground truth; left unchanged.
        detections: COCO results with `image_id`, `category_id`, `bbox` (x, y, width,
            height in pixels of the original image) and `score`.
        iou: overlap in (0, 1] for a match.
        class_names: by category id; default: the names in `coco_gt`.

    Returns:
        By class name, in the order of the categories.
    """
    names = {c["id"]: c["name"] for c in coco_gt.dataset.get("categories", [])}
    names.update(class_names or {})
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
        # loadRes fails on an empty list.
        results = COCO()
        results.createIndex()
        if detections:
            results = coco.loadRes([{k: d[k] for k in KEYS} for d in detections])
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
        name = names[category]
        if name in by_class:  # nothing forbids two categories of one name
            name = f"{name} (category {category})"
        by_class[name] = Matches(scores[counts], is_correct[counts], num_ground_truth)
    return by_class


def matches_from_evaluator(
    coco_evaluator: COCOEvaluator, iou: float = 0.5, detections_file: str | None = None
) -> dict[str, Matches]:
    """:func:`match_detections` on the data set of a Detectron2 `COCOEvaluator`.

    Args:
        coco_evaluator: of several processes, the main one's.
        iou: overlap in (0, 1] for a match.
        detections_file: COCO results; default: what the evaluator has written in
            `evaluate()`.

    Returns:
        By class name.

    Raises:
        BadInput: the evaluator has no output folder, hence kept no detections, or
            `detections_file` is not of its data set.
    """
    metadata, coco_gt = coco_evaluator._metadata, coco_evaluator._coco_api
    if detections_file:
        detections = read_detections(detections_file, coco_gt, metadata.get("name"))
    else:
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
    classes = metadata.get("thing_classes", [])
    to_class = metadata.get("thing_dataset_id_to_contiguous_id")
    to_class = to_class or {i: i for i in range(len(classes))}
    class_names = {category: classes[i] for category, i in to_class.items() if i < len(classes)}
    return match_detections(coco_gt, detections, iou, class_names)


def read_detections(path: str, coco_gt: COCO, name: str = "data set") -> list[dict]:
    """Read a file in COCO's result format and make sure that it is of this data set.

    Args:
        path: JSON, a list of dicts as :func:`match_detections` takes them.
        coco_gt: the data set.
        name: what the data set is called in a message.

    Raises:
        BadInput: the file is absent, holds something else, or names an image or a category that
            the data set does not have.
    """
    file, hint = os.fspath(path), "give the coco_instances_results.json of an evaluation"
    try:
        with open(path) as f:
            detections = json.load(f)
    except OSError as e:
        raise BadInput(f"{file}: cannot be read ({e.strerror}); {hint}") from None
    except ValueError as e:
        raise BadInput(f"{file}: not a JSON file ({e}); {hint}") from None
    if not isinstance(detections, list):
        raise BadInput(f"{file}: holds a {type(detections).__name__}, not a list; {hint}")
    known = {"image_id": set(coco_gt.getImgIds()), "category_id": set(coco_gt.getCatIds())}
    for i, d in enumerate(detections):
        if not _is_detection(d):
            raise BadInput(
                f"{file}: entry {i} is no detection with image_id, category_id, bbox (4 numbers) "
                f"and score; {hint}"
            )
        for key, ids in known.items():
            if d[key] not in ids:
                raise BadInput(
                    f"{file}: {key}={d[key]!r} of entry {i} is not in {name!r} ({len(ids)} of "
                    "them); give the detections of this data set, or the config of theirs"
                )
    return detections


def _is_detection(d):
    return (
        isinstance(d, dict)
        and all(k in d for k in KEYS)
        and all(isinstance(d[k], (int, str)) for k in ("image_id", "category_id"))
        and isinstance(d["bbox"], list)
        and len(d["bbox"]) == 4
        and all(isinstance(x, (int, float)) and math.isfinite(x) for x in [*d["bbox"], d["score"]])
    )
