"""Sizes and boxes of the views of many images in one pass, for augmentations that are exact.

What ``DatasetMapper`` makes of an image's size and annotations, bit by bit; no image is read.

    N images   G objects of all images
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import detectron2.data.transforms as T
import numpy as np
from detectron2.structures import BoxMode

from .views import choices, size_of

SMALLEST = np.float32(1e-5)  # pixels; Detectron2 drops objects whose sides are not longer


class Records(NamedTuple):
    """Sizes and objects of images as arrays; crowds are left out."""

    sizes: np.ndarray
    """(N, 2) int64, height and width in pixels."""

    boxes: np.ndarray
    """(G, 4) float64, XYXY pixels: the objects of all images, one image after another."""

    is_whole: np.ndarray
    """(G,) bool, whether a box is given as whole numbers. Detectron2 keeps it so."""

    classes: np.ndarray
    """(G,) int64."""

    starts: np.ndarray
    """(N + 1,) int64: image i has the objects ``starts[i]:starts[i + 1]``."""

    def part(self, begin: int, end: int) -> "Records":
        """Those of the images from ``begin`` to before ``end``."""
        starts = self.starts[begin : end + 1]
        rows = slice(starts[0], starts[-1])
        return Records(
            self.sizes[begin:end],
            self.boxes[rows],
            self.is_whole[rows],
            self.classes[rows],
            starts - starts[0],
        )


def read_records(dataset_dicts: list[dict]) -> Records | None:
    """Reads the boxes of dataset dicts into arrays.

    Args:
        dataset_dicts: in Detectron2's format.

    Returns:
        None if a box is no list or tuple of four Python numbers, XYXY or XYWH.

    Raises:
        BadInput: if a dict has no size.
    """
    sizes = [size_of(image, index) for index, image in enumerate(dataset_dicts)]
    objects = [
        [a for a in image.get("annotations", []) if a.get("iscrowd", 0) == 0]
        for image in dataset_dicts
    ]
    starts = np.cumsum([0, *map(len, objects)])
    objects = list(itertools.chain.from_iterable(objects))
    boxes = [a["bbox"] for a in objects]
    modes = np.array([a["bbox_mode"] for a in objects], np.int64)
    are_plain = all(type(box) in (list, tuple) and len(box) == 4 for box in boxes)
    numbers = list(itertools.chain.from_iterable(boxes)) if are_plain else []
    types = set(map(type, numbers))
    if not are_plain or not types <= {int, float}:
        return None
    if not np.isin(modes, [BoxMode.XYXY_ABS, BoxMode.XYWH_ABS]).all():
        return None
    is_whole = np.zeros(len(boxes), bool)
    if int in types:
        is_whole[:] = [all(type(x) is int for x in box) for box in boxes]
    return Records(
        np.array(sizes, np.int64).reshape(-1, 2),
        _corners(np.array(numbers, np.float64).reshape(-1, 4), modes == BoxMode.XYWH_ABS),
        is_whole,
        np.array([int(a["category_id"]) for a in objects], np.int64),
        starts,
    )


def _corners(boxes, is_xywh):
    """XYXY from boxes of both modes; Detectron2 adds in float32."""
    as_float = boxes[is_xywh].astype(np.float32)
    as_float[:, 2:] += as_float[:, :2]
    boxes[is_xywh] = as_float
    return boxes


class Resize(NamedTuple):
    """What ``ResizeShortestEdge`` does to every image."""

    length: int
    max_size: float

    def __call__(self, sizes, boxes, image, is_whole):
        distinct, place = np.unique(sizes, axis=0, return_inverse=True)
        new_sizes = [
            T.ResizeShortestEdge.get_output_shape(*size, self.length, self.max_size)
            for size in distinct.tolist()
        ]
        new_sizes = np.array(new_sizes, np.int64).reshape(-1, 2)[place.ravel()]
        vertical, horizontal = (new_sizes * 1.0 / sizes).T
        scale = np.stack([horizontal, vertical] * 2)[:, image]
        boxes = boxes * scale
        boxes[:, is_whole] = np.trunc(boxes[:, is_whole])
        return new_sizes, boxes


class Flip(NamedTuple):
    """What ``RandomFlip`` does to an image that it flips."""

    horizontal: bool

    def __call__(self, sizes, boxes, image, is_whole):
        low, high = (0, 2) if self.horizontal else (1, 3)
        ends = sizes[image, 1 if self.horizontal else 0]
        boxes = boxes.copy()
        boxes[low], boxes[high] = ends - boxes[low], ends - boxes[high]
        return sizes, boxes


class Nothing(NamedTuple):
    """No resize, or no flip."""

    def __call__(self, sizes, boxes, image, is_whole):
        return sizes, boxes


def recipes(augmentations) -> list[tuple[list[Callable], float]]:
    """All outcomes of augmentations that are exact, which are the same for every image.

    Args:
        augmentations (list[ResizeShortestEdge or RandomFlip]):

    Returns:
        The steps, and their probability as in ``View``.
    """
    options = [[(_step(a, x), p) for x, p in choices(a)] for a in augmentations]
    return [
        ([step for step, _ in outcome], math.prod((p for _, p in outcome), start=1.0))
        for outcome in itertools.product(*options)
    ]


def _step(augmentation, choice):
    if not choice:
        return Nothing()
    if isinstance(augmentation, T.RandomFlip):
        return Flip(bool(augmentation.horizontal))
    return Resize(choice, augmentation.max_size)


def apply(steps: list[Callable], records: Records) -> tuple:
    """Applies one recipe of transforms to the boxes of many images.

    Args:
        steps: of :func:`recipes`.
        records: N images, G objects.

    Returns:
        Sizes (N, 2) int64; boxes (G', 4) float32 XYXY, cut to the image, without those that
        have become empty; classes (G',) int64; starts (N + 1,).
    """
    sizes, boxes = records.sizes, records.boxes.T
    image = np.repeat(np.arange(len(sizes)), np.diff(records.starts))
    for step in steps:
        sizes, boxes = step(sizes, boxes, image, records.is_whole)
        # As every transform does it, one that changes nothing included.
        boxes = np.concatenate([np.minimum(boxes[:2], boxes[2:]), np.maximum(boxes[:2], boxes[2:])])
    ends = sizes[image].T[[1, 0, 1, 0]]
    boxes = np.minimum(np.maximum(boxes, 0), ends).T.astype(np.float32)
    kept = (boxes[:, 2:] - boxes[:, :2] > SMALLEST).all(axis=1)
    nums = np.bincount(image[kept], minlength=len(sizes))
    return sizes, boxes[kept], records.classes[kept], np.concatenate([[0], np.cumsum(nums)])
