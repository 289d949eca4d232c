"""The anchors that an IoU matcher labels, found without looking at all of them.

An anchor far from every object is background. From the lowest threshold and the two areas follows
how much an anchor has to overlap an object; from that, as anchors lie on a regular grid, the range
of rows, and in each row the range of columns. Only those are compared, so that every label is that
of Detectron2's ``Matcher``.

    B images   G objects of all images   Q cell anchors of all levels
    H hits: an object and an anchor that overlap enough   M anchors that are hit
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou

from .grid import Grid, iou
from .images import Labeled, begins, expand
from .parts import InParts

MARGIN = 1 - 1e-5  # of the overlap that is required: more than float32 rounds away
NEVER = 2.0  # no IoU


@dataclass(frozen=True, eq=False)
class IoUMatcher(InParts):
    """Detectron2's ``Matcher`` on the anchors of its ``DefaultAnchorGenerator``.

    Args:
        cell_anchors (tuple[np.ndarray]): (A, 4) float32 for each level, XYXY around 0.
        strides (tuple[int]): pixels, of each level.
        offset (float): of the first anchor, in strides; offset * stride has to be exact in float32.
        thresholds (tuple[float]): ascending, > 0, without the infinite ones.
        labels (tuple[int]): -1, 0 or 1, one more than thresholds. The first, of the anchors that
            overlap nothing, is 0.
        allow_low_quality (bool): whether the best anchors of each object are foreground.
    """

    cell_anchors: tuple
    strides: tuple
    offset: float
    thresholds: tuple
    labels: tuple
    allow_low_quality: bool

    @property
    def per_cell(self):
        """(L,) anchors at each place of a level."""
        return np.array([len(x) for x in self.cell_anchors])

    def _label(self, images, table):
        grid = Grid(self.cell_anchors, self.strides, self.offset, images)
        least = np.full(len(images.boxes), self.thresholds[0], np.float32)
        untouched = []
        if self.allow_low_quality:
            best = grid.best_of_nearest()
            least = np.minimum(least, best)
            untouched = np.unique(grid.image[best == 0])
            least[np.isin(grid.image, untouched)] = NEVER
        hits = _hits(grid, least)
        winners = _first_of_best(hits, table)
        labels = np.empty(len(hits.iou), np.int8)
        labels[winners] = self._label_of(hits.iou[winners])
        if self.allow_low_quality:
            labels[table[hits.anchor[_is_best(hits)]]] = 1
        winners = winners[labels[winners] != 0]
        labels = labels[winners]
        objects = hits.object[winners]
        image = grid.image[objects]
        anchor = hits.anchor[winners] - grid.image_begins[image]
        # A better object may be there that did not need this anchor.
        weak = np.flatnonzero((labels == 1) & (hits.iou[winners] < np.float32(self.thresholds[0])))
        objects[weak] = _best_objects(grid, image[weak], anchor[weak])
        objects[labels != 1] = -1
        found = Labeled(image, hits.level[winners], anchor, objects)
        parts = [found, *(self._label_all(grid, i) for i in untouched)]
        return Labeled(*map(np.concatenate, zip(*parts)))

    def _label_of(self, overlaps):
        """(M,) label by the thresholds alone, of IoUs (M,)."""
        reached = sum((overlaps >= np.float32(x)).astype(np.int8) for x in self.thresholds)
        return np.array(self.labels, np.int8)[reached]

    def _label_all(self, grid, image):
        """An image with an object that overlaps no anchor: the matcher gives it all of them."""
        begin, end = grid.images.starts[image : image + 2]
        ends = grid.level_begins[image] + grid.images.shapes[image].prod(axis=1) * grid.per_cell
        index = np.arange(ends[-1])
        anchors, level = grid.anchors(np.full(len(index), image), index)
        matcher = Matcher(list(self.thresholds), list(self.labels), self.allow_low_quality)
        objects, labels = matcher(
            pairwise_iou(
                *(Boxes(torch.from_numpy(x)) for x in (grid.images.boxes[begin:end], anchors))
            )
        )
        objects, labels = objects.numpy() + begin, labels.numpy()
        objects[labels != 1] = -1
        kept = np.flatnonzero(labels != 0)
        return Labeled(np.full(len(kept), image), level[kept], index[kept], objects[kept])


class _Hits(NamedTuple):
    """(H,) each, object by object."""

    object: np.ndarray
    level: np.ndarray
    anchor: np.ndarray  # index among the anchors of all images
    iou: np.ndarray  # float32


def _hits(grid, least):
    """The anchors that overlap an object by at least ``least`` (G,), an IoU > 0 in float32."""
    x, y = grid.x, grid.y
    # IoU >= t means common / (area + other area) >= t / (1 + t).
    share = least / (1 + least.astype(np.float64)) * MARGIN
    sides = [np.maximum(d.cell_side.astype(np.float64) - grid.slack, 0) for d in (x, y)]
    need = share * (grid.area + (sides[0] * sides[1])[:, None])  # (Q, G) pixels
    width, height = (np.minimum(d.side, d.cell_side[:, None]) + grid.slack for d in (x, y))
    # Object by object, as of equal overlaps the first object's counts.
    objects, cell = np.nonzero((need <= width * height).T)
    need, width, height = (a[cell, objects] for a in (need, width, height))
    first_column, last_column = x.reach(objects, cell, need / height)
    first_row, last_row = y.reach(objects, cell, need / width)

    num_columns = np.maximum(last_column - first_column + 1, 0)
    pair, column = expand(first_column, num_columns)
    width, common_width = x.overlap(column, cell[pair], objects[pair])
    begin_of_anchor = column * grid.per_cell[grid.level][cell][pair]

    column_begins = begins(num_columns) - first_column
    pair, row = expand(first_row, np.maximum(last_row - first_row + 1, 0))
    objects, cell = objects[pair], cell[pair]
    height, common_height = y.overlap(row, cell, objects)
    first, last = x.reach(objects, cell, need[pair] / (common_height + grid.slack))
    first = np.maximum(first, first_column[pair])
    last = np.minimum(last, last_column[pair])
    level, image = grid.level[cell], grid.image[objects]
    row_begins = (
        grid.image_begins[image]
        + grid.level_begins[image, level]
        + row * grid.images.shapes[image, level, 1] * grid.per_cell[level]
        + grid.cell[cell]
    )

    row, column = expand(first + column_begins[pair], np.maximum(last - first + 1, 0))
    overlap = iou(
        common_width[column] * common_height[row],
        grid.area[objects][row],
        width[column] * height[row],
    )
    hit = np.flatnonzero(overlap >= least[objects][row])
    row, column = row[hit], column[hit]
    return _Hits(objects[row], level[row], row_begins[row] + begin_of_anchor[column], overlap[hit])


def _first_of_best(hits: _Hits, table: np.ndarray) -> np.ndarray:
    """Which hit decides about an anchor: that of the largest IoU, of equal ones the first.

    Args:
        hits:
        table: for each anchor of the batch; gets the hit that decides.

    Returns:
        (M,) index among the hits, ascending.
    """
    everything = np.arange(len(hits.iou))
    better = everything
    while len(better) > 0:
        # Of several values for one place numpy keeps the last: backwards, that of the first hit.
        table[hits.anchor[better][::-1]] = better[::-1]
        better = better[hits.iou[better] > hits.iou[table[hits.anchor[better]]]]
    return np.flatnonzero(table[hits.anchor] == everything)


def _is_best(hits):
    """(H,) bool: the largest IoU that the object has with any anchor."""
    if len(hits.iou) == 0:
        return np.zeros(0, bool)
    begin = np.flatnonzero(np.diff(hits.object, prepend=-1))
    best = np.maximum.reduceat(hits.iou, begin)
    return hits.iou == np.repeat(best, np.diff(begin, append=len(hits.iou)))


def _best_objects(grid, image: np.ndarray, anchor: np.ndarray):
    """(N,) which object of its image each anchor overlaps most; if several, the first.

    Args:
        image, anchor: (N,) image, and index among its anchors.
    """
    counts = np.diff(grid.images.starts)[image]
    owner, objects = expand(grid.images.starts[image], counts)
    x1, y1, x2, y2 = grid.anchors(image, anchor)[0][owner].T
    width = np.minimum(x2, grid.x.high[objects]) - np.maximum(x1, grid.x.low[objects])
    height = np.minimum(y2, grid.y.high[objects]) - np.maximum(y1, grid.y.low[objects])
    common = np.maximum(width, 0) * np.maximum(height, 0)
    overlap = iou(common, grid.area[objects], (x2 - x1) * (y2 - y1))
    if len(owner) == 0:
        return objects
    best = np.maximum.reduceat(overlap, begins(counts))
    candidates = np.flatnonzero(overlap == best[owner])
    return objects[candidates[np.diff(owner[candidates], prepend=-1) > 0]]
