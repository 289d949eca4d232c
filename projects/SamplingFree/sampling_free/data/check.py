"""Checks of a data set before anything is trained on it, each with a line that says what to do.

Legend: M annotations of a data set; boxes are XYXY in pixels unless said otherwise.
"""

import difflib
import logging
from collections import Counter
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from ..utils.errors import BadInput
from .masks import is_sound_mask
from .records import called, log_once, require_categories

BOX_LENGTH = {BoxMode.XYXY_ABS: 4, BoxMode.XYWH_ABS: 4, BoxMode.XYWHA_ABS: 5}
_NUM_NAMED = 3  # files or class names that a message spells out
# Pixels. Detectron2's mapper drops what is thinner than 1e-5 after resizing, and says nothing.
_NO_SIDE = 1e-3
_FAR = 0.1  # of a side of the image: no annotation tool is so far off
_MANY_CROWDS = 0.1  # of all annotations; COCO has 1 %


def clean_dicts(dicts: list[dict], source: str, min_size: float = _NO_SIDE) -> list[dict]:
    """Drop the boxes that nothing can be learned from, and report them in one line, once.

    Dropped are boxes that are no finite numbers, have no area, lie wholly outside the image, or
    come with a mask that is none. Crowd annotations are treated like all others. The input is left
    as it is.

    Args:
        dicts: Detectron2's dataset dicts; "width" and "height" may be missing.
        source: the file or data set that the report names.
        min_size: a box whose width or height is not larger than this has no area; in px.

    Returns:
        As many dicts as came in, in the same order; with whole numbers as sizes.

    Raises:
        BadInput: a size or a "bbox_mode" is none; names the image.
    """
    return _cleaned(dicts, source, min_size)[0]


def _cleaned(dicts, source, min_size=_NO_SIDE):
    """What ``clean_dicts`` returns, and what it left out."""
    dicts = [_with_whole_size(record, source) for record in dicts]
    found = iter(_faults(dicts, source, min_size))
    cleaned, counts, files = [], Counter(), []
    for record in dicts:
        annotations = record.get("annotations")
        faults = [next(found) for _ in annotations or ()]
        if any(faults):
            counts.update(f for f in faults if f)
            files.append(Path(str(called(record))).name)
            kept = [a for a, fault in zip(annotations, faults) if not fault]
            record = {**record, "annotations": kept}
        cleaned.append(record)
    if files:
        log_once(f"{source}: skipped {_counted(counts)} in {_shortened(files)}")
    return cleaned, counts


def _counted(counts):
    what = ", ".join(f"{counts[fault]} {fault}" for fault in sorted(counts))
    return f"{sum(counts.values())} boxes ({what})"


def _with_whole_size(record, source):
    """The record with 64 where pandas wrote 64.0."""
    size = {side: record[side] for side in ("width", "height") if side in record}
    for side, value in size.items():
        if not isinstance(value, Real) or not value >= 1 or value % 1:
            where = called(record)
            raise BadInput(
                f"{source}: {side}={value!r} of {where}: give a whole number of pixels from 1 up"
            )
        size[side] = int(value)
    return {**record, **size}


def _faults(dicts, source, min_size):
    """What is wrong with each of the M annotations, in order: a few words, or "" for nothing."""
    pairs = _pairs(dicts)
    boxes, is_box = _upright(pairs, source)
    finite = np.isfinite(boxes).all(axis=1)
    with np.errstate(invalid="ignore"):
        area = (boxes[:, 2:] - boxes[:, :2] > min_size).all(axis=1)
        seen = np.minimum(boxes[:, 2:], _sizes(pairs)) - np.maximum(boxes[:, :2], 0)
        inside = (seen > _NO_SIDE).all(axis=1)
    masked = np.array([_has_sound_mask(record, a) for record, a in pairs], dtype=bool)
    names = np.select(
        [~is_box, ~finite, ~area, ~inside, ~masked],
        ["not 4 numbers", "not finite", "of no area", "outside the image", "of a broken mask"],
        "",
    )
    return names.tolist()


def _pairs(dicts):
    """Each annotation, with its record in front."""
    return [(d, a) for d in dicts for a in d.get("annotations") or ()]


def _upright(pairs, source):
    """Boxes (M, 4) as XYXY, NaN where there is none; and which are boxes, (M,) bool."""
    boxes = np.full((len(pairs), 4), np.nan)
    is_box = np.zeros(len(pairs), dtype=bool)
    for mode, rows, given in _by_mode(pairs, source):
        boxes[rows] = BoxMode.convert(given, mode, BoxMode.XYXY_ABS)
        is_box[rows] = True
    return boxes, is_box


def _by_mode(pairs, source):
    """Mode, numbers of the annotations and boxes as given, (m, 4 or 5), for each mode in use.

    All at once, as a conversion per box takes long on COCO.
    """
    rows = {mode: [] for mode in BOX_LENGTH}
    for i, (record, annotation) in enumerate(pairs):
        mode = annotation.get("bbox_mode")
        if not isinstance(mode, Integral) or mode not in rows:
            names = ", ".join(m.name for m in BOX_LENGTH)
            raise BadInput(f"{source}: bbox_mode={mode} in {called(record)}: give one of {names}")
        if _is_numbers(annotation.get("bbox"), BOX_LENGTH[mode]):
            rows[mode].append(i)
    return [
        (mode, found, np.array([pairs[i][1]["bbox"] for i in found], dtype=np.float64))
        for mode, found in rows.items()
        if found
    ]


def _sizes(pairs):
    """Width and height (M, 2) of the image of each annotation; infinite where it is not known."""
    sizes = [(d.get("width", np.inf), d.get("height", np.inf)) for d, _ in pairs]
    return np.array(sizes, dtype=np.float64).reshape(-1, 2)


def require_pixels(dicts: list[dict], source: str):
    """Makes sure that boxes are no fractions of the image.

    Args:
        dicts: Detectron2's dataset dicts.
        source: what the message calls the data set.

    Raises:
        BadInput: all boxes lie in [0, 1].
    """
    pairs = _pairs(dicts)
    given = [boxes[:, :4] for _, _, boxes in _by_mode(pairs, source)]
    if given and _sizes(pairs).max() > 2 and max(np.abs(x).max() for x in given) <= 1:
        raise BadInput(
            f"{source}: all {sum(map(len, given))} boxes lie in [0, 1], as fractions of the image "
            "do; multiply them by its width and height: coordinates have to be pixels"
        )


def report_implausible(dicts: list[dict], source: str):
    """Says in one line each what Detectron2 reads, and what can hardly be meant so.

    Args:
        dicts: Detectron2's dataset dicts.
        source: what the lines call the data set.

    Raises:
        BadInput: as :func:`require_pixels`.
    """
    require_pixels(dicts, source)
    pairs = [x for x in _pairs(dicts) if not x[1].get("iscrowd", 0)]
    boxes, _ = _upright(pairs, source)
    sizes = _sizes(pairs)
    with np.errstate(invalid="ignore"):
        over = np.maximum(boxes[:, 2:] - sizes, -boxes[:, :2]) / sizes
        is_far = (over > _FAR).any(axis=1)
    if is_far.any():
        first = pairs[np.flatnonzero(is_far)[0]][0]
        log_once(
            f"{source}: {is_far.sum()} of {len(pairs)} boxes reach well beyond the image, such as "
            f"in {called(first)}, and are cut at its edge{_mixed_up(pairs, sizes)}"
        )
    rotated = sum(a["bbox_mode"] == BoxMode.XYWHA_ABS for _, a in pairs)
    if rotated:
        log_once(
            f"{source}: {rotated} of {len(pairs)} boxes are rotated (XYWHA_ABS); Detectron2's own "
            "mapper takes the upright rectangle around each"
        )


def _mixed_up(pairs, sizes):
    """A hint where boxes given as x, y, width, height are x0, y0, x1, y1 all of them."""
    if any(a["bbox_mode"] != BoxMode.XYWH_ABS for _, a in pairs):
        return ""
    given = np.array([a["bbox"] for _, a in pairs if _is_numbers(a.get("bbox"), 4)], np.float64)
    if len(given) < len(pairs) or not (given[:, 2:] > given[:, :2]).all():
        return ""
    if (given[:, 2:] > sizes + 1).any():
        return ""
    return "; all would lie inside as corners: give width and height in place of x1 and y1"


def report_crowds(dicts: list[dict], source: str):
    """Says how many annotations are crowds, as a warning where they are many.

    Args: as of :func:`report_implausible`.
    """
    is_crowd = [bool(a.get("iscrowd", 0)) for _, a in _pairs(dicts)]
    if any(is_crowd):
        level = logging.WARNING if np.mean(is_crowd) > _MANY_CROWDS else logging.INFO
        log_once(
            f"{source}: {sum(is_crowd)} of {len(is_crowd)} annotations are crowds (iscrowd=1), "
            "which no detector is trained on",
            level,
        )


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


def check_num_classes(
    num_classes: int,
    thing_classes: Sequence[str] | None,
    name: str,
    key: str = "model.num_classes",
):
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


def check_dataset(
    dicts: list[dict],
    num_classes: int,
    thing_classes: Sequence[str] | None,
    name: str,
    key: str = "model.num_classes",
) -> list[dict]:
    """Clean a data set and make sure that a model with ``num_classes`` can be trained on it.

    Args:
        dicts: Detectron2's dataset dicts.
        num_classes: the classes of the model, K.
        thing_classes: the data set's class names, if it has them.
        name: the registered name, for the messages.
        key: where the config has ``num_classes``, for the messages.

    Returns:
        The dicts as ``clean_dicts`` returns them.

    Raises:
        BadInput: the class count or a category id does not fit, or no image has an object.
    """
    check_num_classes(num_classes, thing_classes, name, key)
    source = f"data set {name!r}"
    require_categories(dicts, num_classes, source, thing_classes, key)
    dicts, skipped = _cleaned(dicts, name)
    if all(a.get("iscrowd", 0) for _, a in _pairs(dicts)):
        why = f"skipped were {_counted(skipped)}; " if skipped else ""
        raise BadInput(
            f"{source}: none of its {len(dicts)} images has an annotated object: {why}"
            "check its split and its annotation files"
        )
    return dicts


def check_masks(dicts: list[dict], name: str):
    """Make sure that every object of a training set has a mask.

    Args:
        dicts: Detectron2's dataset dicts.
        name: the registered name, for the messages.

    Raises:
        BadInput: one has none; names its image.
    """
    for record in dicts:
        for annotation in record.get("annotations") or ():
            mask = annotation.get("segmentation", [])
            is_none = mask is None or isinstance(mask, (list, dict)) and not mask
            if is_none and not annotation.get("iscrowd", 0):
                raise BadInput(
                    f"data set {name!r}: an object in {called(record)} has no segmentation, which "
                    "the mask head needs; add it, or take a detector of boxes"
                )


def check_same_classes(
    first: tuple[str, Sequence[str] | None], second: tuple[str, Sequence[str] | None]
):
    """Make sure that the data sets of a config count their classes alike.

    Args:
        first, second: registered name and class names.

    Raises:
        BadInput: they have other numbers of classes, or the same classes in another order, so that
            each would be taken for another. Of other names there is only a warning: they may be
            other words.
    """
    (first_name, ours), (second_name, theirs) = first, second
    if not ours or not theirs or list(ours) == list(theirs):
        return
    both = f"data sets {first_name!r} and {second_name!r}"
    if len(ours) != len(theirs):
        raise BadInput(
            f"{both} have {len(ours)} classes ({_shortened(ours)}) and {len(theirs)} "
            f"({_shortened(theirs)}): give both the same"
        )
    lists = f"{_shortened(ours)}; {_shortened(theirs)}"
    if sorted(ours) == sorted(theirs):
        raise BadInput(f"{both} have the same classes in another order ({lists}); give both one")
    log_once(f"{both} call their classes differently ({lists}); they are compared by position")


def require_registered(names: str | Sequence[str]):
    """Make sure that data sets are known to Detectron2.

    Args:
        names: registered names.

    Raises:
        BadInput: a name is unknown; the message lists those that look like it.
    """
    for name in [names] if isinstance(names, str) else names:
        if name not in DatasetCatalog:
            known = sorted(DatasetCatalog.list())
            close = difflib.get_close_matches(name, known, n=_NUM_NAMED, cutoff=0.5)
            hint = f"did you mean {' or '.join(close)}? If not, " if close else ""
            raise BadInput(
                f"unknown data set {name!r}: {hint}register it: in the LazyConfig, or, for a YAML "
                "config, in a Python file with setup_environment() that the environment variable "
                f"DETECTRON2_ENV_MODULE names ({len(known)} are registered)"
            )


def _shortened(names):
    names = [str(n) for n in names]
    more = len(names) - _NUM_NAMED
    return ", ".join(names[:_NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
