"""The canvas of a synthetic image: background, clutter of no class, and objects in front of it.

Legend: H, W image height and width, (h, w) a window in it. Colors are RGB in [0, 255]; opacity
and brightness are in 256ths, because integers give the same pixels on every machine.
"""

import numpy as np

from .shapes import polygon_mask

MAX_HIDDEN = 0.3  # share of an object's pixels that later objects may cover
_TRIES = 20  # positions tried for an object before it is left out
_NOBODY = 0  # the owner of a pixel that shows no object


def background(rng, height, width, cells=3):
    """(H, W, 3) int32 smooth greyish field: random corners of a grid, bilinear in between."""
    grid = rng.integers(70, 131, (cells + 1, cells + 1, 1), np.int32)
    grid = grid + rng.integers(-14, 15, (cells + 1, cells + 1, 3), np.int32)

    def upsample(values, num):  # along the first axis, to ``num`` rows
        position = np.arange(num, dtype=np.int32) * cells * 256 // num
        index, share = position // 256, (position % 256).reshape(-1, 1, 1)
        return (values[index] * (256 - share) + values[index + 1] * share) >> 8

    return upsample(upsample(grid, height).swapaxes(0, 1), width).swapaxes(0, 1)


class Scene:
    """An image in the making. Attributes: ``rng``, and ``pixels`` (H, W, 3) int32."""

    def __init__(self, rng, height, width):
        self.rng = rng
        self.pixels = background(rng, height, width)
        self._owner = np.full((height, width), _NOBODY)
        self._drawn = [0]  # pixels of each owner when it was drawn; the first is nobody

    def add_clutter(self):
        """Draw a thin line or a faint irregular blob; to be called before ``place``."""
        rng = self.rng
        height, width = self.pixels.shape[:2]
        at = rng.uniform(0, 1, 2) * (width, height)
        if rng.uniform() < 0.6:
            way = rng.uniform(-0.6, 0.6, 2) * (width, height)
            side = np.array([-way[1], way[0]]) / max(1.0, np.abs(way).max())
            side *= rng.uniform(0.5, 1.2)
            polygon = np.stack([at - side, at + side, at + way + side, at + way - side])
        else:
            angles = np.arange(14) * (2 * np.pi / 14)
            radii = rng.uniform(0.4, 1.0, (14, 1)) * rng.uniform(3, min(height, width) / 6)
            polygon = at + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        mask = polygon_mask(np.round(polygon, 2), height, width)
        color = rng.integers(30, 180) + rng.integers(-20, 21, 3)
        self.pixels[mask] = (self.pixels[mask] + color) // 2

    def place(self, mask, paint, contrast):
        """Paint a thing at a random position where it hides no earlier one too much.

        Args:
            mask: (h, w) bool window, smaller than the image.
            paint: (h, w, 3) its colors.
            contrast: opacity in (0, 1].

        Returns:
            (x, y) of the window's corner, or None if no position was found.
        """
        height, width = self._owner.shape
        opacity = int(256 * contrast)
        for _ in range(_TRIES):
            x = int(self.rng.integers(0, width - mask.shape[1] + 1))
            y = int(self.rng.integers(0, height - mask.shape[0] + 1))
            window = slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1])
            owner = self._owner.copy()
            owner[window][mask] = len(self._drawn)
            visible = np.bincount(owner.reshape(-1), minlength=len(self._drawn) + 1)
            if all(
                visible[i] >= (1 - MAX_HIDDEN) * self._drawn[i] for i in range(1, len(self._drawn))
            ):
                self._owner = owner
                self._drawn.append(int(mask.sum()))
                behind = self.pixels[window][mask]
                self.pixels[window][mask] = (
                    behind * (256 - opacity) + paint[mask] * opacity
                ) // 256
                return x, y
        return None

    def finish(self, noise):
        """(H, W, 3) uint8 picture: slightly blurred, as by a lens, then with brightness noise."""
        pixels = self.pixels
        for axis in (0, 1):
            before, after = np.roll(pixels, 1, axis), np.roll(pixels, -1, axis)
            edge = [slice(None)] * 3
            for wrapped, position in ((before, 0), (after, -1)):
                edge[axis] = position
                wrapped[tuple(edge)] = pixels[tuple(edge)]
            pixels = (before + 2 * pixels + after) // 4
        # Three levels only: the noise is most of a PNG file's size.
        pixels = pixels + noise * self.rng.integers(-1, 2, (*self._owner.shape, 1), np.int8).astype(
            np.int32
        )
        return np.clip(pixels, 0, 255).astype(np.uint8)
