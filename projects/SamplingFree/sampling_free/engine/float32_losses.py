"""Detectron2's FCOS in mixed precision.

Its losses take the head's outputs as autocast leaves them, and fvcore's GIoU loss stops where these
are half precision and the boxes are not.
"""

import functools

import torch
from torch import nn
from torch.utils._pytree import tree_map


def losses_in_float32(model: nn.Module):
    """Lets a dense detector, in place, compute its losses in float32 also under autocast.

    Args:
        model: with Detectron2's method ``losses``, of lists of tensors and ``Boxes``.
    """
    losses = model.losses

    @functools.wraps(losses)
    def in_float32(*args):
        with torch.autocast(model.device.type, enabled=False):
            return losses(*tree_map(_as_float32, args))

    model.losses = in_float32


def _as_float32(x):
    return x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
