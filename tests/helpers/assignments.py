"""Detectors with the labels that their assignment should give, computed in loops."""

import math

import numpy as np

from helpers.tiny import stock_retinanet, tiny_retinanet
from helpers.tiny_detectors import stock_fcos, tiny_fcos, tiny_rcnn

SIZES = [(64, 96), (61, 47), (50, 133), (96, 64), (33, 65)]  # most are no multiples of 32

NUMS = [4, 1, 6, 0, 3]

DETECTORS = {
    "RetinaNet": tiny_retinanet,
    "stock RetinaNet": stock_retinanet,
    "FCOS": tiny_fcos,
    "stock FCOS": stock_fcos,
    "Faster R-CNN": tiny_rcnn,
    "stock Faster R-CNN": lambda: tiny_rcnn(stock=True),
    "C4": lambda: tiny_rcnn("c4"),
    "stock C4": lambda: tiny_rcnn("c4", stock=True),
    "Cascade R-CNN": lambda: tiny_rcnn("cascade"),
}


def grid(size, stride, divisibility):
    """Centers (P, 2) of the cells of a level for an image of (height, width), padded by itself."""
    height, width = (-(-n // divisibility) * divisibility for n in size)
    rows, columns = -(-height // stride), -(-width // stride)
    return np.array([(x + 0.5, y + 0.5) for y in range(rows) for x in range(columns)]) * stride


def _anchors(size, strides, divisibility):
    """Anchors (R, 4) of each level, sides of 2 and 4 strides in three shapes, in float32."""
    levels = []
    for stride in strides:
        shapes = []
        for side in (2 * stride, 4 * stride):
            for ratio in (0.5, 1.0, 2.0):
                width = math.sqrt(side * side / ratio)
                shapes.append((width, ratio * width))
        half = np.array(shapes) / 2
        cells = np.hstack([-half, half]).astype(np.float32)
        places = np.tile(grid(size, stride, divisibility), 2).astype(np.float32)
        levels.append((places[:, None] + cells[None]).reshape(-1, 4))
    return levels


def rpn_labels(
    boxes, size, *, strides, divisibility, low=0.3, high=0.7, low_quality=True, border=-1
):
    """Labels of the anchors of each level: 0 an object, 1 background, -1 ignored.

    In float32 throughout: which anchors share the best overlap with an object hangs on rounding.
    """
    levels = _anchors(size, strides, divisibility)
    anchors = np.concatenate(levels)
    boxes = boxes.astype(np.float32)
    best = np.zeros(len(anchors), np.float32)
    is_best = np.zeros(len(anchors), bool)
    areas = (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])
    for box in boxes:
        corner = np.maximum(anchors[:, :2], box[:2])
        sides = np.maximum(np.minimum(anchors[:, 2:], box[2:]) - corner, 0)
        common = sides[:, 0] * sides[:, 1]
        overlap = common / ((box[2] - box[0]) * (box[3] - box[1]) + areas - common)
        assert overlap.max() > 0
        best = np.maximum(best, overlap)
        is_best |= overlap == overlap.max()
    labels = np.where(best >= np.float32(high), 0, np.where(best < np.float32(low), 1, -1))
    if low_quality:
        labels[is_best] = 0
    if border >= 0:
        height, width = size
        x0, y0, x1, y1 = anchors.T
        inside = (x0 >= -border) & (y0 >= -border) & (x1 < width + border) & (y1 < height + border)
        labels[~inside] = -1
    return np.split(labels, np.cumsum([len(x) for x in levels])[:-1])
