"""The points that FCOS labels as foreground, found without looking at all of them.

A point has to lie in its object, near the object's center, and on the level for the object's size:
as points lie on a regular grid, that is a range of rows and one of columns. Only those are looked
at, by Detectron2's own float32 operations, so that every label is that of its ``FCOS``.

    P pairs of an object and a level   T columns, or rows, of all pairs   E points of all pairs
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .grid import Grid
from .images import begins, expand
from .parts import InParts, last_of_each_anchor

LOWER, UPPER = 4, 8  # of the distance to an object's farthest side, in strides; not of the ends
PIXEL = 1.0  # more than float32 rounds away


@dataclass(frozen=True)
class PointMatcher(InParts):
    """The assignment of Detectron2's ``FCOS``, of anchors as large as the stride.

    Args:
        strides (tuple[int]): pixels, of each level.
        offset (float): of the first point, in strides.
        radius (float): of the part of an object around its center that has points, in strides;
            ``inf`` for all of it.
    """

    strides: tuple
    offset: float
    radius: float

    def _label(self, images, table):
        square = np.array([[-0.5, -0.5, 0.5, 0.5]], np.float32)
        cells = tuple(square * np.float32(stride) for stride in self.strides)
        grid = Grid(cells, self.strides, self.offset, images)
        objects, level = self._pairs(grid)
        columns, rows = (self._lines(d, objects, level) for d in (grid.x, grid.y))
        row, column = self._points(columns, rows, level)

        pair = rows.pair[row]
        place = rows.index[row], columns.index[column]
        return last_of_each_anchor(grid, objects[pair], level[pair], *place, table)

    def _pairs(self, grid):
        """(P,) objects, of which a later one wins, and (P,) levels that may have their points."""
        quality = 1e8 - grid.area  # as Detectron2 has it, with what it rounds away
        order = np.lexsort((-np.arange(len(quality)), quality))  # of equal ones the first is last
        order = order[quality[order] >= 1e-5]
        longest = np.maximum(grid.x.side, grid.y.side)[order, None].astype(np.float64)
        farthest = np.minimum(longest, longest / 2 + self.radius * grid.stride)
        lower, upper = LOWER * grid.stride, UPPER * grid.stride
        lower[0], upper[-1] = 0, np.inf
        row, level = np.nonzero((farthest > lower - PIXEL) & (longest / 2 < upper + PIXEL))
        return order[row], level

    def _lines(self, direction, objects, level):
        """The columns, or rows, that lie in their objects and near enough to the center."""
        low, high = direction.low[objects], direction.high[objects]
        center = (low + high) / 2
        stride = direction.grid.stride[level]
        reach = self.radius * stride + PIXEL
        # One more at both ends, for what is rounded.
        first = np.ceil(np.maximum(low, center - reach) / stride - direction.offset) - 1
        last = np.floor(np.minimum(high, center + reach) / stride - direction.offset) + 1
        first = np.maximum(first, 0).astype(np.int64)
        last = np.minimum(last, direction.last[level, direction.grid.image[objects]])
        pair, index = expand(first, np.maximum(last.astype(np.int64) - first + 1, 0))

        begin, end = direction.anchors(index, level[pair])
        point = (begin + end) / 2
        before, behind = point - low[pair], high[pair] - point
        away = np.abs(point - center[pair])
        kept = np.flatnonzero((before > 0) & (behind > 0) & (away < reach[pair]))
        lines = _Lines(pair, index, end - begin, np.maximum(before, behind), away)
        return _Lines(*(x[kept] for x in lines))

    def _points(self, columns, rows, level):
        """(E,) index among the rows and (E,) among the columns, pair by pair."""
        level = level[columns.pair]
        lower = np.where(level == 0, 0, columns.size * LOWER)
        upper = np.where(level == len(self.strides) - 1, np.inf, columns.size * UPPER)
        radius = self.radius * columns.size
        counts = np.bincount(columns.pair, minlength=rows.pair.max(initial=-1) + 1)
        row, column = expand(begins(counts)[rows.pair], counts[rows.pair])
        far = np.maximum(rows.far[row], columns.far[column])
        away = np.maximum(rows.away[row], columns.away[column])
        found = (away < radius[column]) & (far > lower[column]) & (far < upper[column])
        found = np.flatnonzero(found)
        return row[found], column[found]


class _Lines(NamedTuple):
    """(T,) each, pair by pair; all but the first two float32 pixels."""

    pair: np.ndarray
    index: np.ndarray  # of the column or row
    size: np.ndarray  # of the anchor that stands for a point
    far: np.ndarray  # from the farther side of the object
    away: np.ndarray  # from the center of the object
