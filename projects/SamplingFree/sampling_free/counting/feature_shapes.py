"""How large the feature maps of an image are, from its size alone.

    B images   L levels

Every image is padded by itself to the size divisibility.
"""

from types import SimpleNamespace

import numpy as np
import torch
from detectron2.structures import ImageList

MOST_KNOWN = 2**16


def padded_size(size: tuple[int, int], backbone):
    """(height, width) of an image that is padded by itself, by Detectron2's own rule.

    Args:
        size: (height, width) in pixels.
        backbone (Backbone): its ``size_divisibility`` and, where it has them, constraints.
    """
    constraints = getattr(backbone, "padding_constraints", None)
    images = ImageList.from_tensors(
        [torch.empty(1, *size, device="meta")],
        backbone.size_divisibility,
        **({"padding_constraints": constraints} if constraints else {}),
    )
    return tuple(images.tensor.shape[-2:])


class LevelShapes:
    """Shapes of the feature maps of images; remembers each size."""

    def __init__(self, backbone, strides: list[int]):
        """Reads how a backbone pads and strides.

        Args:
            backbone (Backbone): says how an image is padded.
            strides: (L,) pixels.
        """
        self.padding = SimpleNamespace(
            size_divisibility=backbone.size_divisibility,
            padding_constraints=getattr(backbone, "padding_constraints", None),
        )
        self.strides = np.array(strides)
        self.known = {}

    def __call__(self, sizes: np.ndarray) -> np.ndarray:
        """Computes the shape of each level without running the backbone.

        Args:
            sizes: (B, 2) int64, height and width of each image in pixels.

        Returns:
            (B, L, 2) int64, height and width of each level.
        """
        padded = [self._padded(size) for size in map(tuple, sizes.tolist())]
        # Convolutions and pooling of stride 2 round up, so level sizes are ceil(size / stride).
        return -(-np.array(padded).reshape(-1, 1, 2) // self.strides[:, None])

    def _padded(self, size):
        if len(self.known) == MOST_KNOWN:  # of random crops there is no end
            self.known.clear()
        if size not in self.known:
            self.known[size] = padded_size(size, self.padding)
        return self.known[size]
