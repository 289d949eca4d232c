"""Where the anchors of a ``DefaultAnchorGenerator`` and the objects of some images lie.

    B images   G objects of all images   L levels   Q cell anchors of all levels   N any number

Coordinates and overlaps are computed by Detectron2's own float32 operations, in their order.
"""

import numpy as np

from .images import begins

SLACK = 2.0**-20  # of the largest coordinate: several times what float32 rounds away


class Grid:
    """Anchors and objects of a batch.

    Attributes:
        x, y (Direction): columns and rows.
        level, stride, cell (np.ndarray): (Q,) level and stride of each cell anchor, and its index
            within the level.
        per_cell (np.ndarray): (L,) cell anchors of each level.
        level_begins (np.ndarray): (B, L) index of each level's first anchor in its image.
        image_begins (np.ndarray): (B,) of each image's first anchor in the batch.
        image (np.ndarray): (G,) image of each object.
        area (np.ndarray): (G,) float32, of each object.
        slack (float): pixels; no coordinate is wrong by more.
    """

    def __init__(self, cell_anchors, strides, offset, images):
        self.images = images
        self.per_cell = np.array([len(x) for x in cell_anchors])
        self.level = np.repeat(np.arange(len(strides)), self.per_cell)
        self.stride = np.array(strides, np.float64)[self.level]
        self.cell = np.concatenate([np.arange(n) for n in self.per_cell])
        sizes = images.shapes.prod(axis=2) * self.per_cell  # (B, L)
        self.level_begins = np.cumsum(sizes, axis=1) - sizes
        self.image_begins = begins(sizes.sum(axis=1))
        self.image = np.repeat(np.arange(len(images.shapes)), np.diff(images.starts))

        cells = np.concatenate(cell_anchors)
        extent = (images.shapes.max(axis=(0, 2)) * strides).max() + np.abs(cells).max()
        self.slack = SLACK * float(max(extent, np.abs(images.boxes).max()))
        self.x, self.y = (Direction(self, cells, offset, axis) for axis in (0, 1))
        self.area = self.x.side * self.y.side

    def anchors(self, image: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Computes the boxes of anchors by their indices.

        Args:
            image, index: (N,) image of an anchor and index in that image.

        Returns:
            (N, 4) float32 XYXY, and (N,) the level.
        """
        level = (index[:, None] >= self.level_begins[image]).sum(axis=1) - 1
        place, cell = np.divmod(index - self.level_begins[image, level], self.per_cell[level])
        row, column = np.divmod(place, self.images.shapes[image, level, 1])
        cell += begins(self.per_cell)[level]
        (x1, x2), (y1, y2) = self.x.anchors(column, cell), self.y.anchors(row, cell)
        return np.stack([x1, y1, x2, y2], axis=1), level

    def best_of_nearest(self):
        """(G,) float32: IoU of each object with the best of the anchors nearest to its center."""
        (width, common_width), (height, common_height) = self.x.nearest(), self.y.nearest()
        return iou(common_width * common_height, self.area, width * height).max(axis=0)


class Direction:
    """Columns or rows.

    Attributes:
        low, high, side (np.ndarray): (G,) float32, of the objects: begin, end, their difference.
        cell_low, cell_high, cell_side (np.ndarray): (Q,) float32, of the cell anchors.
    """

    def __init__(self, grid, cells, offset, axis):
        self.grid, self.offset = grid, offset
        self.low, self.high = grid.images.boxes.T[axis].copy(), grid.images.boxes.T[axis + 2].copy()
        self.side = self.high - self.low
        self.cell_low, self.cell_high = cells.T[axis].copy(), cells.T[axis + 2].copy()
        self.cell_side = self.cell_high - self.cell_low
        self.last = grid.images.shapes[:, :, 1 - axis].T - 1  # (L, B)

    def anchors(self, index: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Computes the sides of anchors in this direction.

        Args:
            index: columns or rows.
            cell: index among the Q cell anchors.

        Returns:
            Float32, where the anchors begin and end.
        """
        shift = ((index + self.offset) * self.grid.stride[cell]).astype(np.float32)
        return shift + self.cell_low[cell], shift + self.cell_high[cell]

    def overlap(
        self, index: np.ndarray, cell: np.ndarray, objects: np.ndarray = slice(None)
    ) -> tuple[np.ndarray, np.ndarray]:
        """Computes what anchors and objects have in common in this direction.

        Args:
            index, cell: as in :meth:`anchors`.
            objects: index among the G objects.

        Returns:
            Float32, sides of the anchors, and what they have in
            common with the objects, >= 0.
        """
        low, high = self.anchors(index, cell)
        common = np.minimum(high, self.high[objects]) - np.maximum(low, self.low[objects])
        return high - low, np.maximum(common, 0)

    def nearest(self):
        """:meth:`overlap`, (Q, G), of the anchors nearest to each object's center."""
        cell = np.arange(len(self.cell_low))[:, None]
        center = (self.low + self.high) / 2 - (self.cell_low + self.cell_high)[cell] / 2
        index = np.rint(center / self.grid.stride[cell] - self.offset)
        last = self.last[self.grid.level][:, self.grid.image]
        return self.overlap(np.clip(index, 0, last), cell)

    def reach(
        self, objects: np.ndarray, cell: np.ndarray, common: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The anchors that have at least ``common`` pixels in common with an object, or some more.

        Args:
            objects, cell, common: (N,).

        Returns:
            (N,) int64, first and last index; none if last < first.
        """
        stride, common = self.grid.stride[cell], common - 2 * self.grid.slack
        first = (self.low[objects] + common - self.cell_high[cell]) / stride - self.offset
        last = (self.high[objects] - common - self.cell_low[cell]) / stride - self.offset
        of_grid = self.last[self.grid.level[cell], self.grid.image[objects]]
        return (
            np.maximum(np.ceil(first), 0).astype(np.int64),
            np.minimum(np.floor(last), of_grid).astype(np.int64),
        )


def iou(common, area, other_area):
    """As Detectron2's ``pairwise_iou`` has it, float32, of areas > 0."""
    return common / (area + other_area - common)
