"""The anchors that ATSS labels as foreground, found without looking at all of them.

The closest anchors of a level lie in a small window of the grid around the object's center. The
window is wide enough if its k-th closest anchor is closer than any in the next row or column; where
it is not, a larger one is taken. Operations and ties are those of ``atss_match``.

    B images   G objects of all images   L levels   P pairs of an object and a level
    K candidates of each pair   S side of the window
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ...detectors.atss_assignment import stand_out
from .grid import Grid, iou
from .parts import InParts, last_of_each_anchor


@dataclass(frozen=True, eq=False)
class ATSSMatcher(InParts):
    """The assignment of ``ATSS``, which stands for that of ``PAA`` too.

    Args:
        cell_anchors (tuple[np.ndarray]): (1, 4) float32 for each level, XYXY around 0.
        strides (tuple[int]): pixels, of each level.
        offset (float): of the first anchor, in strides.
        topk (int): k, candidates of each level.
    """

    cell_anchors: tuple
    strides: tuple
    offset: float
    topk: int

    def _label(self, images, table):
        grid = Grid(self.cell_anchors, self.strides, self.offset, images)
        num_objects, num_levels = len(grid.image), len(self.strides)
        counts = np.minimum(images.shapes.prod(axis=2), self.topk)  # (B, L), as levels may be small
        most = int(counts.max())
        objects, level = np.divmod(np.arange(num_objects * num_levels), num_levels)  # (P,)
        side = 2 * math.ceil(math.sqrt(most / math.pi))  # of a disc that holds as many
        column, row = _closest(grid, objects, level, counts[grid.image].reshape(-1), most, side)
        width, common_width = grid.x.overlap(column, level[:, None], objects[:, None])
        height, common_height = grid.y.overlap(row, level[:, None], objects[:, None])
        overlap = iou(common_width * common_height, grid.area[objects][:, None], width * height)

        positive = _positive(overlap.reshape(num_objects, num_levels, most), counts, grid.image)
        column, row, overlap = (x.reshape(-1)[positive] for x in (column, row, overlap))
        objects, level = objects[positive // most], level[positive // most]
        inside = _contains(grid.x, objects, column, level) & _contains(grid.y, objects, row, level)
        # Last the largest overlap, of equal ones that of the first object.
        order = np.lexsort((-objects, overlap))
        order = order[inside[order]]
        found = (x[order] for x in (objects, level, row, column))
        return last_of_each_anchor(grid, *found, table)


def _closest(
    grid: Grid, objects: np.ndarray, level: np.ndarray, counts: np.ndarray, most: int, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the anchors closest to each object, in one level.

    Args:
        grid: with one cell anchor in each level.
        objects, level: (P,).
        counts: (P,) how many anchors to find, from 1 up.
        most: K, the largest count.
        side: S to begin with; S * S >= K.

    Returns:
        (P, K) columns and rows, in the order of their distance, of
        equal ones in that of the grid. What comes after the count means nothing.
    """
    x, y = (_window(direction, objects, level, side) for direction in (grid.x, grid.y))
    # As in atss_match, but with the index in the window, which is in the same order.
    squares = (x.squares[:, None] + y.squares[:, :, None]).reshape(len(objects), -1)
    keys = squares.view(np.int32).astype(np.int64)
    keys <<= 32
    keys += np.arange(side * side)
    keys.sort(axis=1)
    keys = keys[:, :most]
    row, column = np.divmod(keys & 0xFFFFFFFF, side)
    row += y.begin[:, None]
    column += x.begin[:, None]

    # Behind the next row or column nothing is closer than that. Only if the center lies behind it
    # too, something may be; but then the window itself is not closer, and too small by this test.
    last = keys[np.arange(len(keys)), counts - 1]
    last = (last >> 32).astype(np.int32).view(np.float32)
    again = np.flatnonzero(last >= np.minimum(x.beyond, y.beyond))
    if len(again) > 0:
        column[again], row[again] = _closest(
            grid, objects[again], level[again], counts[again], most, 2 * side
        )
    return column, row


class _Window(NamedTuple):
    """Columns, or rows, around the center of an object."""

    begin: np.ndarray  # (P,) index of the first
    squares: np.ndarray  # (P, S) float32, squared distance from the center, inf outside the grid
    beyond: np.ndarray  # (P,) float32, such a square of the next on either side, the smaller one


def _window(direction, objects, level, side):
    center = (direction.low[objects] + direction.high[objects]) / 2
    last = direction.last[level, direction.grid.image[objects]]
    nearest = np.floor(center / direction.grid.stride[level] - direction.offset)
    begin = np.clip(nearest - (side // 2 - 1), 0, np.maximum(last + 1 - side, 0)).astype(np.int64)
    index = begin[:, None] + np.arange(-1, side + 1)  # with the next on both sides
    low, high = direction.anchors(index, level[:, None])
    away = (low + high) / 2 - center[:, None]
    squares = away * away
    squares[(index < 0) | (index > last[:, None])] = np.inf
    return _Window(begin, squares[:, 1:-1], np.minimum(squares[:, 0], squares[:, -1]))


def _positive(overlap: np.ndarray, counts: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Finds the candidates whose IoU is at least mean plus deviation.

    Args:
        overlap: (G, L, K) float32, of each object with its candidates.
        counts: (B, L) how many of the K are there.
        image: (G,).

    Returns:
        (M,) index of the candidates in the flat array that stand out.
    """
    candidates = overlap.reshape(len(overlap), -1)
    found = []
    kinds, kind = np.unique(counts, axis=0, return_inverse=True)
    for number, count in enumerate(kinds):
        objects = np.flatnonzero(kind.reshape(-1)[image] == number)
        slots = np.flatnonzero(np.arange(overlap.shape[2]) < count[:, None])
        of_kind = candidates[objects[:, None], slots].T
        slot, row = np.nonzero(stand_out(np.ascontiguousarray(of_kind, np.float64)))
        found.append(objects[row] * candidates.shape[1] + slots[slot])
    return np.concatenate(found)


def _contains(direction, objects, index, level):
    """Whether the centers of anchors lie between the sides of their objects; (M,) each."""
    begin, end = direction.anchors(index, level)
    center = (begin + end) / 2
    return (center > direction.low[objects]) & (center < direction.high[objects])
