"""The views of an image that a training recipe shows, without decoding the image.

A *view* is one outcome of the recipe's augmentations: a list of transforms, the size that they
give, and a weight (the probability). ``ResizeShortestEdge`` and ``RandomFlip`` have few outcomes,
so all of them are taken, exactly. Any other augmentation is drawn at random, seeded, and run on an
empty picture of the right size.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import detectron2.data.transforms as T
import numpy as np
from detectron2.data import DatasetMapper
from detectron2.structures import Instances

from ..utils.errors import BadInput
from ..utils.seeding import seeded


class View(NamedTuple):
    """One outcome of the augmentations for an image.

    Attributes:
        transforms (TransformList): to be applied to boxes.
        size (tuple[int, int]): (height, width) in pixels after the transforms.
        weight (float): in (0, 1]; the weights of an image's views sum to 1.
    """

    transforms: T.TransformList
    size: tuple
    weight: float


def size_of(image: dict, index: int) -> tuple[int, int]:
    """(height, width) of the image of a dataset dict; an error names it, or its index."""
    if "height" not in image or "width" not in image:
        raise BadInput(f"{image.get('file_name', index)}: its record has no height and width")
    return image["height"], image["width"]


def is_exact(augmentation: T.Augmentation | T.Transform) -> bool:
    """Whether all outcomes of an augmentation are enumerated instead of drawn."""
    return type(augmentation) in (T.ResizeShortestEdge, T.RandomFlip)


def sampled_names(augmentations: list) -> list[str]:
    """Names of those augmentations whose outcomes must be drawn; empty if all are exact."""
    return [type(a).__name__ for a in augmentations if not is_exact(a)]


def enumerate_views(augmentations, size: tuple[int, int]) -> list[View]:
    """All views of an image under ``augmentations``.

    Args:
        augmentations (list[Augmentation or Transform]): as Detectron2's ``DatasetMapper`` has
            them. Those that are not :func:`is_exact` are drawn from the global random generators;
            see :func:`sampling_free.utils.seeding.seeded`.
        size: (height, width) of the image file.
    """
    views = [View(T.TransformList([]), tuple(size), 1.0)]
    for augmentation in augmentations:
        views = [
            View(view.transforms + transform, new_size, view.weight * probability)
            for view in views
            for transform, new_size, probability in _outcomes(augmentation, view.size)
        ]
    return views


def choices(augmentation: T.ResizeShortestEdge | T.RandomFlip) -> list[tuple[int, float]]:
    """What an exact augmentation chooses from, for any image.

    Args:
        augmentation: of a kind that :func:`is_exact`.

    Returns:
        Length of the shortest edge, 0 for no resize, or whether to flip; and the probability, > 0.
    """
    if isinstance(augmentation, T.RandomFlip):
        both = [(False, 1 - augmentation.prob), (True, augmentation.prob)]
        return [choice for choice in both if choice[1] > 0]
    lengths = [int(x) for x in augmentation.short_edge_length]
    if augmentation.is_range:
        lengths = range(lengths[0], lengths[1] + 1)
    counts = Counter(lengths)  # a single length is given twice
    return [(length, count / len(lengths)) for length, count in counts.items()]


def _outcomes(augmentation, size):
    height, width = size
    if not is_exact(augmentation):
        picture = T.AugInput(np.zeros((height, width, 3), dtype=np.uint8))
        transform = T.AugmentationList([augmentation])(picture)
        return [(transform, picture.image.shape[:2], 1.0)]
    outcomes = []
    for choice, probability in choices(augmentation):
        transform, new_size = T.NoOpTransform(), size
        if isinstance(augmentation, T.RandomFlip):
            if choice:
                horizontal = augmentation.horizontal
                transform = T.HFlipTransform(width) if horizontal else T.VFlipTransform(height)
        elif choice > 0:
            new_size = T.ResizeShortestEdge.get_output_shape(
                height, width, choice, augmentation.max_size
            )
            transform = T.ResizeTransform(height, width, *new_size, augmentation.interp)
        outcomes.append((transform, new_size, probability))
    return outcomes


def mapped_views(
    mapper: DatasetMapper, image: dict, index: int, num_passes: int, seed: int
) -> Iterator[tuple[float, tuple[int, int], Instances]]:
    """Yields an image as the mapper gives it under each view.

    Args:
        mapper: without masks, unless boxes are recomputed from them.
        image: in Detectron2's format; stays as it is.
        index: of the image, for what is drawn.
        num_passes: how often it is drawn.
        seed: of those draws.

    Yields:
        Weight of the view, (height, width), and what the detector gets to see.
    """
    for number in range(num_passes):
        with seeded(seed, number, index):
            views = enumerate_views(mapper.augmentations.augs, size_of(image, index))
        for view in views:
            record = {"annotations": [dict(a) for a in image.get("annotations", [])]}
            mapper._transform_annotations(record, view.transforms, view.size)
            yield view.weight / num_passes, view.size, record["instances"]
