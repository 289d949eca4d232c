"""Checks of the files that an evaluator reads on its own, and by which it measures.

They are not cleaned like a training set: pycocotools takes a box with NaN for found by detections
far from it, and ends with an error, after hours of training, where a key is missing; Detectron2's
VOC evaluator wants tags that its loader does without.
"""

import math
import re
import xml.etree.ElementTree as ET
from collections import Counter
from numbers import Real

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import parse_rec
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..utils.errors import BadInput
from .check import BOX_LENGTH
from .coco_file import called, is_id
from .masks import is_sound_mask
from .records import called as called_image
from .records import is_flat, log_once

_VOC = "Detectron2's PascalVOCDetectionEvaluator"
_NO_VOC = (
    "or evaluate as COCO does: dataloader.evaluator._target_=detectron2.evaluation.COCOEvaluator"
)


def check_evaluated_boxes(content: dict, path: str):
    """Makes sure that pycocotools can measure boxes; warns of objects that nothing can find.

    Args:
        content: of ``read_coco_file``.
        path: for the messages.

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
        log_once(
            f"{path}: the evaluation counts {len(empty)} boxes of no area as missed "
            f"(such as {empty[0]}); correct or remove them"
        )
    for annotation in annotations:
        if annotation["id"] == 0:
            log_once(
                f"{path}: the evaluation counts {called(annotation)} as missed; count from 1 up"
            )


def check_evaluated_masks(content: dict, path: str):
    """Makes sure that pycocotools can measure masks.

    Args, Raises: as of :func:`check_evaluated_boxes`.
    """
    for annotation in content.get("annotations", []):
        mask = annotation.get("segmentation")
        is_of_pairs = isinstance(mask, list) and not all(map(is_flat, mask))
        if is_of_pairs or not is_sound_mask(mask):
            raise BadInput(
                f"{path}: {called(annotation)} has no sound 'segmentation', which the evaluation "
                "of masks needs; correct or remove it"
            )


def check_evaluated_voc(evaluator: PascalVOCDetectionEvaluator):
    """Makes sure that Detectron2's ``PascalVOCDetectionEvaluator`` can read what it measures by.

    Args:
        evaluator: whose annotations are parsed, and kept by it.

    Raises:
        BadInput: names the file and what is in the way.
    """
    for name in evaluator._class_names:
        if "/" in name:
            raise BadInput(f"class {name!r}: {_VOC} makes a file of this name; {_NO_VOC}")
    with PathManager.open(evaluator._image_set_path) as f:
        images = [line.strip() for line in f]
    for image in images:
        if len(image.split()) != 1:
            raise BadInput(
                f"{evaluator._image_set_path}: {_VOC} cannot have the line {image!r}: write one "
                f"name without blanks in each, and no empty line; {_NO_VOC}"
            )
        path = evaluator._anno_file_template.format(image)
        try:
            parse_rec(path)
        except Exception as e:  # of the parser, and of what it meets
            raise BadInput(
                f"{path}: {_voc_fault(path) or e}, which {_VOC} needs; correct it; {_NO_VOC}"
            ) from None


def check_converted(name: str, is_rotated: bool = False):
    """Makes sure that Detectron2 can write the COCO file of a data set that has none.

    Args:
        name: registered; checked as :mod:`.records` does.
        is_rotated: the evaluator takes rotated boxes.

    Raises:
        BadInput: names the data set, and the image where it is one.
    """
    where = f"data set {name!r}"
    if not MetadataCatalog.get(name).get("thing_classes"):
        raise BadInput(
            f"{where}: has no class names, which the evaluation needs; where it is registered, "
            f"write MetadataCatalog.get({name!r}).thing_classes = [...]"
        )
    records = DatasetCatalog.get(name)
    _check_image_ids([record.get("image_id") for record in records], where)
    for record in records:
        fault = _record_fault(record)
        for annotation in record.get("annotations") or ():
            fault = fault or _annotation_fault(annotation, is_rotated)
        if fault:
            raise BadInput(
                f"{where}: {called_image(record)} has {fault}, which an evaluation cannot use; "
                "correct or remove it"
            )


def _check_image_ids(ids, where):
    for number, image_id in enumerate(ids):
        if not is_id(image_id):
            raise BadInput(
                f"{where}: record {number} has image_id={image_id!r}, by which the evaluation "
                "finds its image; give each a whole number or text of its own"
            )
    (common, count), *_ = Counter(ids).most_common(1)
    if count > 1:
        raise BadInput(
            f"{where}: {count} of its {len(ids)} images have image_id={common!r}; give each one "
            "of its own"
        )
    if len({isinstance(i, str) for i in ids}) > 1:
        raise BadInput(f"{where}: some image_id are numbers and some text; take one kind")


def _record_fault(record):
    missing = [key for key in ("file_name", "width", "height") if record.get(key) is None]
    return f"no {missing[0]!r}" if missing else None


def _annotation_fault(annotation, is_rotated):
    mode = annotation.get("bbox_mode")
    if mode == BoxMode.XYWHA_ABS and not is_rotated:
        return "a rotated box (XYWHA_ABS)"
    box, mask = annotation.get("bbox"), annotation.get("segmentation")
    if mode not in [*BOX_LENGTH]:
        return f"bbox_mode={mode}"
    if not _is_box(box, BOX_LENGTH[mode]):
        return f"bbox={box!r}"
    if mask is not None and (not isinstance(mask, (list, dict)) or not is_sound_mask(mask)):
        return "a 'segmentation' of neither polygons nor run lengths"
    return None


def warn_if_bare(dicts: list[dict], name: str):
    """Warns of a test set by which nothing can be measured.

    Args:
        dicts: Detectron2's dataset dicts.
        name: of the data set.
    """
    if isinstance(dicts, list) and not any(d.get("annotations") for d in dicts):
        log_once(
            f"data set {name!r}: none of its {len(dicts)} images has an object: there is no AP"
        )


def _fault(annotation):
    box = annotation.get("bbox")
    if not _is_box(box, 4):
        return f"bbox={box!r}"
    if not _is_finite(annotation.get("area")):
        return f"area={annotation.get('area')!r}"
    if "iscrowd" not in annotation:
        return "no 'iscrowd'"
    if isinstance(annotation["id"], str):
        return f"the text {annotation['id']!r} as its id"
    return None


def _voc_fault(path):
    """What keeps ``parse_rec`` from reading a file, if that is known."""
    try:
        things = ET.parse(path).findall("object")
    except (OSError, ValueError, ET.ParseError):
        return None
    whole = ["truncated", "difficult"]
    whole += [f"bndbox/{side}" for side in ("xmin", "ymin", "xmax", "ymax")]
    for thing in things:
        for tag in ["name", "pose", *whole]:
            text = thing.findtext(tag)
            if text is None:
                return f"an object has no <{tag}>"
            if tag in whole and not re.fullmatch(r"\s*[+-]?\d+\s*", text):
                return f"<{tag}> is {text!r} and no whole number"
    return None


def _is_box(box, length):
    return isinstance(box, (list, tuple)) and len(box) == length and all(map(_is_finite, box))


def _is_finite(value):
    return isinstance(value, Real) and math.isfinite(value)
