"""Many index ranges of unequal length at once, as flat arrays.

    N ranges   T indices in all of them

Such as the columns of the anchors that each of many objects may overlap.
"""

import numpy as np


def expand(first: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The indices of all ranges, one range after another.

    Args:
        first: (N,) int64, start of each range.
        counts: (N,) int64 >= 0, length of each range.

    Returns:
        (T,) the range that each index belongs to, and the index.
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) + (first - begins(counts))[owner]


def begins(counts):
    """(N,) where each range begins among the T indices."""
    return np.cumsum(counts) - counts
