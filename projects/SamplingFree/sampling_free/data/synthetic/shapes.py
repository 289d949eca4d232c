"""The look of the synthetic classes: a class is a shape, a color and a texture.

Only integer arithmetic and polygons rounded to 0.01 px are used, no fonts and no anti-aliasing,
so that a picture does not depend on the drawing library or the processor.

Legend: V vertices, (h, w) a window in pixels.
"""

import math
from typing import NamedTuple

import numpy as np
import pycocotools.mask as mask_util


def _ring(num, radius=1.0, start=-90.0, end=270.0):
    """``num`` points at equal angles from ``start`` to ``end`` degrees (``end`` excluded)."""
    angles = [math.radians(start + (end - start) * i / num) for i in range(num)]
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _star(points, inner):
    outer, notch = _ring(points), _ring(points, inner, -90 + 180 / points, 270 + 180 / points)
    return [p for pair in zip(outer, notch) for p in pair]


# Simple polygons (no holes) that stay apart when tilted by 15 degrees and stretched by 1.25.
SHAPES = {
    "disc": _ring(24),
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1), (1, 0.8), (-1, 0.8)],
    "star": _star(5, 0.42),
    "cross": [(-0.35, -1), (0.35, -1), (0.35, -0.35), (1, -0.35), (1, 0.35), (0.35, 0.35)]
    + [(0.35, 1), (-0.35, 1), (-0.35, 0.35), (-1, 0.35), (-1, -0.35), (-0.35, -0.35)],
    "diamond": [(0, -1), (0.6, 0), (0, 1), (-0.6, 0)],
    "crescent": _ring(16, 1.0, 60, 300)
    + [(x + 0.55, y) for x, y in reversed(_ring(12, 0.85, 85, 275))],
    "arrow": [(-0.3, 1), (-0.3, 0), (-0.9, 0), (0, -1), (0.9, 0), (0.3, 0), (0.3, 1)],
    "ell": [(-0.8, -1), (-0.2, -1), (-0.2, 0.4), (0.8, 0.4), (0.8, 1), (-0.8, 1)],
    "hourglass": [(-0.8, -1), (0.8, -1), (0.2, 0), (0.8, 1), (-0.8, 1), (-0.2, 0)],
}
COLOURS = {
    "red": (225, 45, 40),
    "green": (45, 190, 70),
    "blue": (50, 90, 230),
    "yellow": (240, 215, 45),
    "magenta": (215, 60, 200),
    "cyan": (50, 215, 220),
    "orange": (245, 135, 30),
    "white": (245, 245, 245),
}
TEXTURES = ("plain", "striped", "checked")
MAX_CLASSES = len(SHAPES) * len(COLOURS) * len(TEXTURES)
_SHADOW = 150  # of 256: the brightness of a texture's dark part


class Look(NamedTuple):
    """What tells a class from the others; the fields are keys of the tables above."""

    shape: str
    color: str
    texture: str

    @property
    def name(self):
        """The class name, for example "red plain disc"."""
        return f"{self.color} {self.texture} {self.shape}"


def look(k):
    """The look of class ``k``, in [0, MAX_CLASSES); no two classes share one.

    Neighbors differ in all three properties, so few classes are easy to tell apart and many
    need their combination.
    """
    num_pairs = len(SHAPES) * len(COLOURS)
    return Look(
        list(SHAPES)[k % len(SHAPES)],
        list(COLOURS)[(k + k // len(SHAPES)) % len(COLOURS)],
        TEXTURES[(k % num_pairs + k // num_pairs) % len(TEXTURES)],
    )


def outline(shape, size, stretch=1.0, angle=0.0):
    """The polygon of a shape.

    Args:
        shape: a key of SHAPES.
        size: the longer side of its bounding box in pixels.
        stretch: width over height relative to the table's shape, before the tilt.
        angle: tilt in degrees.

    Returns:
        (V, 2) array in pixels with two decimals whose bounding box starts at (0, 0).
    """
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    xy = np.array(SHAPES[shape], dtype=np.float64) * (stretch, 1.0)
    xy = np.stack([xy[:, 0] * cos - xy[:, 1] * sin, xy[:, 0] * sin + xy[:, 1] * cos], axis=1)
    xy -= xy.min(axis=0)
    return np.round(xy * (size / xy.max()), 2)


def polygon_mask(polygon, height, width):
    """(height, width) bool mask of a (V, 2) polygon, by the rasteriser of the COCO API."""
    rle = mask_util.frPyObjects([polygon.reshape(-1).tolist()], height, width)
    return mask_util.decode(rle)[:, :, 0].astype(bool)


def shading(texture, size, height, width):
    """(height, width, 1) int brightness of a texture, of 256; its period follows ``size``."""
    period = max(2, int(size) // 6)
    y, x = np.mgrid[:height, :width] // period
    if texture == "plain":
        dark = np.zeros((height, width), dtype=bool)
    elif texture == "striped":
        dark = y % 2 == 1
    else:
        dark = (x + y) % 2 == 1
    return np.where(dark, _SHADOW, 256)[:, :, None]


def render(rng, k, size, polygon):
    """An instance of class ``k``: (h, w) bool mask and (h, w, 3) int colors of its window."""
    width, height = (int(v) for v in np.ceil(polygon.max(axis=0)))
    color = np.array(COLOURS[look(k).color]) + rng.integers(-18, 19, 3)
    paint = color * shading(look(k).texture, size, height, width) // 256
    return polygon_mask(polygon, height, width), paint
