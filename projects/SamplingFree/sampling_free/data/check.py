"""Checks of a data set before anything is trained on it, each with a line that says what to do.

Legend: M annotations of a data set; boxes are XYXY in pixels unless said otherwise.
"""

import difflib
import logging
from collections import Counter
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

from ..errors import BadInput

_BOX_LENGTH = {BoxMode.XYXY_ABS: 4, BoxMode.XYWH_ABS: 4, BoxMode.XYWHA_ABS: 5}
_NUM_NAMED = 3  # files or class names that a message spells out


def clean_dicts(dicts, source, min_size=0.0):
    """Drop the boxes that nothing can be learned from, and report them in one line, once.

    Dropped are boxes that are no finite numbers, have no area, or lie wholly outside the image.
    Crowd annotations are treated like all others. The input is left as it is.

    Args:
        dicts (list[dict]): Detectron2's dataset dicts; "width" and "height" may be missing.
        source (str): the file or data set that the report names.
        min_size (float): a box whose width or height is not larger than this has no area; in px.

    Returns:
        list[dict]: as many dicts as came in, in the same order.
    """
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
        log_first_n(logging.WARNING, message, name=__name__, key="message")
    return cleaned


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
        inside = (np.minimum(boxes[:, 2:], size) > np.maximum(boxes[:, :2], 0)).all(axis=1)
    names = np.select(
        [~finite, ~area, ~inside], ["not finite", "of no area", "outside the image"], ""
    )
    return names.tolist()


def _is_numbers(box, length):
    try:
        return np.asarray(box, dtype=np.float64).shape == (length,)
    except (TypeError, ValueError):
        return False


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
