"""Checks of a data set before anything is trained on it, each with a line that says what to do.

Legend: M annotations of a data set; boxes are XYXY in pixels unless said otherwise.
"""

import difflib
import logging
from collections import Counter
from numbers import Real
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

from ..errors import BadInput, printable
from .masks import is_sound_mask

_BOX_LENGTH = {BoxMode.XYXY_ABS: 4, BoxMode.XYWH_ABS: 4, BoxMode.XYWHA_ABS: 5}
_NUM_NAMED = 3  # files or class names that a message spells out
# Pixels. Detectron2's mapper drops what is thinner than 1e-5 after resizing, and says nothing.
_NO_SIDE = 1e-3


def clean_dicts(dicts, source, min_size=_NO_SIDE):
    """Drop the boxes that nothing can be learned from, and report them in one line, once.

    Dropped are boxes that are no finite numbers, have no area, lie wholly outside the image, or
    come with a mask that is none. Crowd annotations are treated like all others. The input is left
    as it is.

    Args:
        dicts (list[dict]): Detectron2's dataset dicts; "width" and "height" may be missing.
        source (str): the file or data set that the report names.
        min_size (float): a box whose width or height is not larger than this has no area; in px.

    Returns:
        list[dict]: as many dicts as came in, in the same order; with whole numbers as sizes.

    Raises:
        BadInput: a size or a "bbox_mode" is none; names the image.
    """
    dicts = [_with_whole_size(record, source) for record in dicts]
    found = iter(_faults(dicts, source, min_size))
    cleaned, counts, files = [], Counter(), []
    for record in dicts:
        annotations = record.get("annotations")
        faults = [next(found) for _ in annotations or ()]
        if any(faults):
            counts.update(f for f in faults if f)
            files.append(Path(str(record.get("file_name", record.get("image_id", "?")))).name)
            kept = [a for a, fault in zip(annotations, faults) if not fault]
            record = {**record, "annotations": kept}
        cleaned.append(record)
    if files:
        what = ", ".join(f"{counts[fault]} {fault}" for fault in sorted(counts))
        message = f"{source}: skipped {sum(counts.values())} boxes ({what}) in {_shortened(files)}"
        message = printable(message)
        log_first_n(logging.WARNING, message, name=__name__, key="message")
    return cleaned


def _with_whole_size(record, source):
    """The record with 64 where pandas wrote 64.0."""
    size = {side: record[side] for side in ("width", "height") if side in record}
    for side, value in size.items():
        if not isinstance(value, Real) or not value >= 1 or value % 1:
            where = record.get("file_name", record.get("image_id"))
            raise BadInput(
                f"{source}: {side}={value!r} of {where}: give a whole number of pixels from 1 up"
            )
        size[side] = int(value)
    return {**record, **size}


def _faults(dicts, source, min_size):
    """What is wrong with each of the M annotations, in order: a few words, or "" for nothing."""
    pairs = [(d, a) for d in dicts for a in d.get("annotations") or ()]
    boxes = np.full((len(pairs), 4), np.nan)
    by_mode = {mode: [] for mode in _BOX_LENGTH}
    for i, (record, annotation) in enumerate(pairs):
        mode = annotation.get("bbox_mode")
        if mode not in by_mode:
            where = record.get("file_name", record.get("image_id"))
            names = ", ".join(m.name for m in _BOX_LENGTH)
            raise BadInput(f"{source}: bbox_mode={mode} in {where}: give one of {names}")
        if _is_numbers(annotation.get("bbox"), _BOX_LENGTH[mode]):
            by_mode[mode].append(i)
    for mode, rows in by_mode.items():  # all at once: a conversion per box takes long on COCO
        if rows:
            given = np.array([pairs[i][1]["bbox"] for i in rows], dtype=np.float64)
            boxes[rows] = BoxMode.convert(given, mode, BoxMode.XYXY_ABS)
    size = [(d.get("width", np.inf), d.get("height", np.inf)) for d, _ in pairs]
    size = np.array(size, dtype=np.float64).reshape(-1, 2)

    finite = np.isfinite(boxes).all(axis=1)
    with np.errstate(invalid="ignore"):
        area = (boxes[:, 2:] - boxes[:, :2] > min_size).all(axis=1)
        seen = np.minimum(boxes[:, 2:], size) - np.maximum(boxes[:, :2], 0)
        inside = (seen > _NO_SIDE).all(axis=1)
    masked = np.array([_has_sound_mask(record, a) for record, a in pairs], dtype=bool)
    names = np.select(
        [~finite, ~area, ~inside, ~masked],
        ["not finite", "of no area", "outside the image", "of a broken mask"],
        "",
    )
    return names.tolist()


def _is_numbers(box, length):
    """Text is none, although NumPy would read it."""
    try:
        box = np.asarray(box)
    except ValueError:  # of several lengths
        return False
    return box.shape == (length,) and box.dtype.kind in "iuf"


def _has_sound_mask(record, annotation):
    """Where it has one in COCO's form; pycocotools would fill all memory with some others."""
    mask = annotation.get("segmentation")
    if not (isinstance(mask, list) and mask or isinstance(mask, dict) and "counts" in mask):
        return True
    size = (record["height"], record["width"]) if {"height", "width"} <= record.keys() else None
    return is_sound_mask(mask, size)


def check_num_classes(num_classes, thing_classes, name, key="model.num_classes"):
    """Make sure that a model has as many classes as a data set.

    Args:
        num_classes, thing_classes, name, key: as in :func:`check_dataset`.

    Raises:
        BadInput: it has not.
    """
    if thing_classes is not None and len(thing_classes) != num_classes:
        raise BadInput(
            f"data set {name!r} has {len(thing_classes)} classes ({_shortened(thing_classes)}) "
            f"but {key}={num_classes}: set {key}={len(thing_classes)}"
        )


def check_dataset(dicts, num_classes, thing_classes, name, key="model.num_classes"):
    """Clean a data set and make sure that a model with ``num_classes`` can be trained on it.

    Args:
        dicts (list[dict]): Detectron2's dataset dicts.
        num_classes (int): the classes of the model, K.
        thing_classes (sequence[str] or None): the data set's class names, if it has them.
        name (str): the registered name, for the messages.
        key (str): where the config has ``num_classes``, for the messages.

    Returns:
        list[dict]: the dicts as ``clean_dicts`` returns them.

    Raises:
        BadInput: the class count or a category id does not fit, or no image has an object.
    """
    check_num_classes(num_classes, thing_classes, name, key)
    dicts = clean_dicts(dicts, name)
    num_objects = 0
    for record in dicts:
        for annotation in record.get("annotations") or ():
            k = annotation.get("category_id")
            if not isinstance(k, (int, np.integer)) or not 0 <= k < num_classes:
                where = record.get("file_name", record.get("image_id"))
                raise BadInput(
                    f"data set {name!r}: category_id={k} in {where} is outside "
                    f"0..{num_classes - 1}: correct the annotation or set {key}"
                )
            num_objects += not annotation.get("iscrowd", 0)
    if num_objects == 0:
        raise BadInput(
            f"data set {name!r}: none of its {len(dicts)} images has an annotated object: "
            "check its split and its annotation files"
        )
    return dicts


def check_masks(dicts, name):
    """Make sure that every object of a training set has a mask.

    Args:
        dicts (list[dict]): Detectron2's dataset dicts.
        name (str): the registered name, for the messages.

    Raises:
        BadInput: one has none; names its image.
    """
    for record in dicts:
        for annotation in record.get("annotations") or ():
            if not annotation.get("iscrowd", 0) and not annotation.get("segmentation"):
                where = record.get("file_name", record.get("image_id"))
                raise BadInput(
                    f"data set {name!r}: an object in {where} has no segmentation, which the mask "
                    "head needs; add it, or take a detector of boxes"
                )


def check_same_classes(train, test):
    """Make sure that the data sets of a config count their classes alike.

    Args:
        train, test (tuple[str, sequence[str] or None]): registered name and class names.

    Raises:
        BadInput: they have the same classes in another order, so that each would be taken for
            another. Of other names there is only a warning: they may be other words.
    """
    (train_name, ours), (test_name, theirs) = train, test
    if not ours or not theirs or list(ours) == list(theirs):
        return
    both = f"data sets {train_name!r} and {test_name!r}"
    lists = f"{_shortened(ours)}; {_shortened(theirs)}"
    if sorted(ours) == sorted(theirs):
        raise BadInput(f"{both} have the same classes in another order ({lists}); give both one")
    message = f"{both} call their classes differently ({lists}); they are compared by position"
    log_first_n(logging.WARNING, message, name=__name__, key="message")


def require_registered(names):
    """Make sure that data sets are known to Detectron2.

    Args:
        names (str or sequence[str]): registered names.

    Raises:
        BadInput: a name is unknown; the message lists those that look like it.
    """
    for name in [names] if isinstance(names, str) else names:
        if name not in DatasetCatalog:
            known = sorted(DatasetCatalog.list())
            close = difflib.get_close_matches(name, known, n=_NUM_NAMED, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}?" if close else "register it"
            raise BadInput(f"unknown data set {name!r}: {hint} ({len(known)} are registered)")


def _shortened(names):
    names = [str(n) for n in names]
    more = len(names) - _NUM_NAMED
    return ", ".join(names[:_NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
