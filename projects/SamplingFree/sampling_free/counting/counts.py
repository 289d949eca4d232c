"""The counts of a data set, and how they are added up.

    L levels   K classes

Sums over images are of whole numbers, so that no order of the images matters.
"""

from dataclasses import dataclass

import numpy as np


@dataclass
class AnchorCounts:
    """Foreground and valid samples of a data set, as mean over the views of each image.

    Attributes:
        valid (np.ndarray): (L,) foreground and background anchors of each level.
        foreground (np.ndarray): (L,) foreground anchors of each level.
        foreground_per_class (np.ndarray): (K,).
        strides (list[int]): (L,) pixels.
        num_images (int): all images, the empty ones included.
        num_empty_images (int): images without an object after the checks of the data.
        num_passes (int): 1 if all views were enumerated, else how often random ones were drawn.
        num_objects (float): objects of all images; a view may cut some away.
        num_unreached (float): those of them that no anchor takes for its own.
        standard_error (float): of the prior, relative to it; 0 where all images were counted.
    """

    valid: np.ndarray
    foreground: np.ndarray
    foreground_per_class: np.ndarray
    strides: list
    num_images: int
    num_empty_images: int
    num_passes: int
    num_objects: float = 0.0
    num_unreached: float = 0.0
    standard_error: float = 0.0

    def __add__(self, other):
        """Counts of two parts of a data set."""
        return AnchorCounts(
            self.valid + other.valid,
            self.foreground + other.foreground,
            self.foreground_per_class + other.foreground_per_class,
            self.strides,
            self.num_images + other.num_images,
            self.num_empty_images + other.num_empty_images,
            self.num_passes,
            self.num_objects + other.num_objects,
            self.num_unreached + other.num_unreached,
        )


class Tally:
    """Sums of whole numbers for each weight of a view, exact in any order."""

    def __init__(self, num_levels, num_classes):
        self.num_levels, self.num_classes = num_levels, num_classes
        self.sums = {}  # weight -> (2 L + K + 2,) int64

    def add(
        self,
        weight: float,
        valid: np.ndarray,
        foreground: np.ndarray,
        per_class: np.ndarray,
        num_objects: int,
        num_unreached: int,
    ) -> None:
        """Takes the counts of some views of the same weight.

        Args:
            weight: of a view, in (0, 1].
            valid, foreground: (L,) int64.
            per_class: (K,) int64.
            num_objects, num_unreached:
        """
        numbers = np.concatenate([valid, foreground, per_class, [num_objects, num_unreached]])
        self.sums[weight] = self.sums.get(weight, 0) + numbers

    def add_all(self, other: "Tally") -> None:
        """Takes what another tally has."""
        for weight, numbers in other.sums.items():
            self.sums[weight] = self.sums.get(weight, 0) + numbers

    def counts(self, **kwargs) -> AnchorCounts:
        """Returns what was counted.

        Args:
            kwargs: the fields of :class:`AnchorCounts` that are no sums over views.
        """
        size = 2 * self.num_levels + self.num_classes + 2
        total = sum((w * self.sums[w] for w in sorted(self.sums)), np.zeros(size))
        ends = np.cumsum([self.num_levels, self.num_levels, self.num_classes])
        valid, foreground, per_class, (num_objects, num_unreached) = np.split(total, ends)
        return AnchorCounts(
            valid,
            foreground,
            per_class,
            num_objects=float(num_objects),
            num_unreached=float(num_unreached),
            **kwargs,
        )
