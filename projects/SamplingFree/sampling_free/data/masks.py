"""Whether a mask in COCO's form is one: pycocotools fills all memory with a polygon of NaN."""

import math
from numbers import Real

import numpy as np

_MOST_GROUPS = 7  # of 5 bits: any number of pixels below 2 ** 34


def is_sound_mask(segmentation: list | dict, size: tuple[int, int] | None = None) -> bool:
    """Says whether polygons or run lengths describe a mask.

    Args:
        segmentation: polygons [x0, y0, x1, y1, ...] in pixels, or {"counts":
            run lengths by columns, as numbers or as COCO's letters, "size": [height, width]}.
        size: (height, width) of the image in pixels; None is not compared.

    Returns:
        False for a polygon of less than three points or with a coordinate that is no finite
        number, and for run lengths that do not cover the image exactly.
    """
    try:
        if not isinstance(segmentation, dict):
            return len(segmentation) > 0 and all(map(_is_polygon, segmentation))
        height, width = segmentation["size"]
        counts = segmentation["counts"]
        lengths = np.array(counts) if isinstance(counts, list) else run_lengths(counts)
        return (
            size in (None, (height, width))
            and lengths.dtype.kind == "i"
            and lengths.min() >= 0
            and int(lengths.sum()) == height * width
        )
    except (KeyError, TypeError, ValueError):
        return False


def _is_polygon(points):
    if len(points) and not isinstance(points[0], Real):  # of pairs, as Detectron2 takes them too
        points = np.ravel(points)
    return len(points) >= 6 and len(points) % 2 == 0 and all(map(math.isfinite, points))


def run_lengths(letters: str | bytes) -> np.ndarray:
    """The run lengths that COCO's letters of a mask stand for.

    A letter has 5 bits of a number, the lowest first, and a sixth that is set where more of the
    number follow. From the fourth number on it is the difference to the last but one.

    Returns:
        (R,) int64, pixels of background and foreground in turn.

    Raises:
        ValueError: other letters, or the last number is cut off.
    """
    letters = letters.encode("ascii") if isinstance(letters, str) else letters
    groups = np.frombuffer(letters, np.uint8).astype(np.int64) - ord("0")
    is_last = (groups & 32) == 0
    if not len(groups) or groups.min() < 0 or groups.max() > 63 or not is_last[-1]:
        raise ValueError("no run lengths")
    ends = np.flatnonzero(is_last)
    num_groups = np.diff(ends, prepend=-1)
    if num_groups.max() > _MOST_GROUPS:
        raise ValueError("no run lengths")
    starts = ends - num_groups + 1
    place = np.arange(len(groups)) - np.repeat(starts, num_groups)
    numbers = np.add.reduceat((groups & 31) << (5 * place), starts)
    numbers -= np.where(groups[ends] & 16, 1 << (5 * num_groups), 0)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers
