"""Sigmoid cross entropy over everything, level by level: once in plain PyTorch, once in Triton.

    N images   A anchors at each place   K classes   H x W places of a level
    R anchors of all levels

Both files have the same functions of L levels (N, A*K, Hi, Wi), dense in memory in any order:

    find_targets(levels, labels)          of labels (N, R), for each level
    total_loss(levels, targets)           sum softplus(x), with -x at each foreground row's class
    gradients(levels, targets, scale)     of that loss times ``scale``, each in the level's dtype
    gradient_norm(levels, targets)        their L1 norm for a ``scale`` of 1

Everything is computed in float32; ``scale`` and the results are float32 scalars.
"""

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from types import ModuleType

from torch import Tensor


def kernel_of(level: Tensor) -> ModuleType:
    """Returns the module for a tensor: Triton's on a GPU, if Triton is there."""
    if level.is_cuda and _has_triton():
        return importlib.import_module(f"{__name__}.sigmoid_bce_triton")
    return importlib.import_module(f"{__name__}.sigmoid_bce_torch")


@functools.lru_cache(maxsize=None)
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def anchors_and_classes(levels: Sequence[Tensor], labels: Tensor) -> tuple[int, int]:
    """Returns (A, K) of levels (N, A*K, Hi, Wi) and their labels (N, R)."""
    num_anchors = labels.shape[1] // sum(x.shape[2] * x.shape[3] for x in levels)
    return num_anchors, levels[0].shape[1] // num_anchors
