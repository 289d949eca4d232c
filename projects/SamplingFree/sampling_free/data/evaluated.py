"""Checks of the COCO file that an evaluator reads on its own, and by which it measures.

It is not cleaned like a training set: pycocotools takes a box with NaN for found by detections far
from it, and ends with an error, after hours of training, where a key is missing.
"""

import logging
import math
from numbers import Real

from detectron2.utils.logger import log_first_n

from ..errors import BadInput
from .coco_file import called
from .masks import is_sound_mask


def check_evaluated_boxes(content, path):
    """Makes sure that pycocotools can measure boxes; warns of objects that nothing can find.

    Args:
        content (dict): of ``read_coco_file``.
        path (str): for the messages.

    Raises:
        BadInput: names the annotation.
    """
    annotations = content.get("annotations", [])
    for annotation in annotations:
        fault = _fault(annotation)
        if fault:
            raise BadInput(
                f"{path}: {called(annotation)} has {fault}, which an evaluation cannot use; "
                "correct or remove it"
            )
    empty = [called(a) for a in annotations if min(a["bbox"][2:]) <= 0]
    if empty:
        _warn(
            f"{path}: the evaluation counts {len(empty)} boxes of no area as missed "
            f"(such as {empty[0]}); correct or remove them"
        )
    for annotation in annotations:
        if annotation["id"] == 0:
            _warn(f"{path}: the evaluation counts {called(annotation)} as missed; count from 1 up")


def check_evaluated_masks(content, path):
    """Makes sure that pycocotools can measure masks.

    Args, Raises: as of :func:`check_evaluated_boxes`.
    """
    for annotation in content.get("annotations", []):
        if not is_sound_mask(annotation.get("segmentation")):
            raise BadInput(
                f"{path}: {called(annotation)} has no sound 'segmentation', which the evaluation "
                "of masks needs; correct or remove it"
            )


def warn_if_bare(dicts, name):
    """Warns of a test set by which nothing can be measured.

    Args:
        dicts (list[dict]): Detectron2's dataset dicts.
        name (str): of the data set.
    """
    if isinstance(dicts, list) and not any(d.get("annotations") for d in dicts):
        _warn(f"data set {name!r}: none of its {len(dicts)} images has an object: there is no AP")


def _fault(annotation):
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return f"bbox={box!r}"
    if not _is_finite(annotation.get("area")):
        return f"area={annotation.get('area')!r}"
    if "iscrowd" not in annotation:
        return "no 'iscrowd'"
    if isinstance(annotation["id"], str):
        return f"the text {annotation['id']!r} as its id"
    return None


def _is_finite(value):
    return isinstance(value, Real) and math.isfinite(value)


def _warn(message):
    log_first_n(logging.WARNING, message, name=__name__, key="message")
