"""Images whose values Pillow cuts off when it makes 8 bits of them, which Detectron2 lets it do."""

from collections.abc import Callable

import numpy as np
from detectron2.data import DatasetMapper
from detectron2.utils.file_io import PathManager
from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_OF_8_BITS = ("BGR", "RGB", "L", "YUV-BT.601")  # formats of a mapper that are made so
_MOST_LOST = 0.02  # of the range of values; a fraction of a grey value in 0 to 255 is less


def reads_as_detectron2(mapper: Callable) -> bool:
    """Says whether a mapper reads an image and augments it as Detectron2's own does."""
    return isinstance(mapper, DatasetMapper) and type(mapper).__call__ is DatasetMapper.__call__


def makes_8_bits(mapper: Callable) -> bool:
    """Says whether a mapper reads an image as Detectron2's own does, with 8 bits a channel."""
    return reads_as_detectron2(mapper) and mapper.image_format in _OF_8_BITS


def require_8_bits(path: str):
    """Makes sure that an image is still itself with 8 bits: 16-bit ones become white, floats black.

    The header is read, and the pixels only of an image that may lose something.

    Args:
        path: of any format that Pillow reads, whatever its suffix.

    Raises:
        ValueError: says which values it has.
    """
    with PathManager.open(path, "rb") as f, Image.open(f) as image:
        if image.mode.startswith(("I", "F")):
            values = np.asarray(image, dtype=np.float64)
            low, high = values.min(), values.max()
            lost = np.abs(values - np.asarray(image.convert("RGB"))[:, :, 0]).max()
            is_fraction = image.mode == "F" and 0 < high <= 1
            is_kept = low >= 0 and high <= 255 and lost <= _MOST_LOST * (high - low)
            if is_fraction or not is_kept:  # not kept are NaN, too
                raise ValueError(
                    f"values from {low:g} to {high:g}; scale them to 0 to 255 and save 8 bits"
                )
