"""Labels images in parts that fit into a processor's cache, with one table for all parts.

E pairs of an object and an anchor
"""

from collections.abc import Callable

import numpy as np

from .images import Labeled, part_of

MOST_OBJECTS, MOST_ANCHORS = 1024, 2**22  # of a part of several images


class InParts:
    """What all matchers share; a subclass has ``_label``, see :func:`label_in_parts`."""

    per_cell = 1

    def __call__(self, images) -> Labeled:
        """Labels the anchors of images.

        Args:
            images (Images): any number, with objects of some width and height.

        Returns:
            Foreground, and what is ignored.
        """
        return label_in_parts(self._label, images, self.per_cell)


def label_in_parts(label: Callable, images, per_cell: int | np.ndarray) -> Labeled:
    """Labels many images part by part, to bound the memory.

    Args:
        label: gives the Labeled of Images that have objects; gets an int32 table too,
            with a place for each of their anchors, and whatever an earlier part left in it.
        images (Images): any number.
        per_cell: (L,) anchors at each place of a level.

    Returns:
        Of all of them.
    """
    sizes = images.shapes.prod(axis=2) * per_cell  # (B, L)
    anchors = np.concatenate([[0], sizes.sum(axis=1).cumsum()])
    # Made once, as fresh memory is slow; only what was written is read.
    table = np.empty(max(MOST_ANCHORS, np.diff(anchors).max(initial=0)), np.int32)
    parts, begin = [Labeled(*np.empty((4, 0), np.int64))], 0
    while begin < len(images.shapes):
        limits = ((images.starts, MOST_OBJECTS), (anchors, MOST_ANCHORS))
        end = min(np.searchsorted(x, x[begin] + most, side="right") - 1 for x, most in limits)
        end = max(end, begin + 1)
        part = part_of(images, begin, end)
        if len(part.boxes) > 0:
            image, level, anchor, matched = label(part, table)
            matched = np.where(matched >= 0, matched + images.starts[begin], -1)
            parts.append(Labeled(image + begin, level, anchor, matched))
        begin = end
    return Labeled(*map(np.concatenate, zip(*parts)))


def last_of_each_anchor(
    grid,
    objects: np.ndarray,
    level: np.ndarray,
    row: np.ndarray,
    column: np.ndarray,
    table: np.ndarray,
) -> Labeled:
    """Keeps one object for each anchor, the last that has it.

    Args:
        grid (Grid): with one cell anchor in each level.
        objects, level, row, column: (E,) foreground; several objects may have an
            anchor, which then is the last one's.
        table: as :func:`label_in_parts` gives it.

    Returns:
        Nothing is ignored.
    """
    image = grid.image[objects]
    width = grid.images.shapes[image, level, 1]
    anchor = grid.level_begins[image, level] + row * width + column
    place = grid.image_begins[image] + anchor
    table[place] = objects  # of several for one place numpy keeps the last
    kept = np.flatnonzero(table[place] == objects)
    return Labeled(image[kept], level[kept], anchor[kept], objects[kept])
