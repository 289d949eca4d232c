"""What a sparse matcher is given and what it answers: many images at once, as flat arrays.

Ranges of unequal length, such as the columns that each object may overlap, are flat arrays too.

    N ranges   T indices in all of them
"""

from typing import NamedTuple

import numpy as np


class Images(NamedTuple):
    """A batch of images, as far as the labeling of their anchors depends on them."""

    boxes: np.ndarray
    """(G, 4) float32, XYXY pixels: the objects of all images, one image after another."""

    starts: np.ndarray
    """(B + 1,) int64: image i has the boxes ``starts[i]:starts[i + 1]``."""

    shapes: np.ndarray
    """(B, L, 2) int64: height and width of the feature map of each level."""


class Labeled(NamedTuple):
    """The anchors of a batch that are not background, in no order."""

    image: np.ndarray
    """(M,) int64: place of the image in the batch."""

    level: np.ndarray
    """(M,) int64: level of the anchor."""

    anchor: np.ndarray
    """(M,) int64: index among the anchors of all levels of the image, in Detectron2's order.

    Within a level it is ``(row * width + column) * num_cell_anchors + cell_anchor``.
    """

    object: np.ndarray
    """(M,) int64: the matched row of ``Images.boxes``, -1 where the anchor is ignored."""


def part_of(images: Images, begin: int, end: int) -> Images:
    """The images from ``begin`` to before ``end`` as a batch of their own."""
    starts = images.starts[begin : end + 1]
    return Images(
        images.boxes[starts[0] : starts[-1]], starts - starts[0], images.shapes[begin:end]
    )


def expand(first: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The indices of all ranges, one range after another.

    Args:
        first: (N,) int64, start of each range.
        counts: (N,) int64 >= 0, length of each range.

    Returns:
        (T,) the range that each index belongs to, and the index.
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) + (first - begins(counts))[owner]


def begins(counts: np.ndarray) -> np.ndarray:
    """(N,) where each range begins among the T indices."""
    return np.cumsum(counts) - counts
