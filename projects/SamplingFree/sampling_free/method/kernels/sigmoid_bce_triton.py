"""The kernel in Triton, for GPUs; it runs on a CPU too, with TRITON_INTERPRET=1 in the environment.

One launch a level and direction. A program compares the labels of its places with its classes, so
that neither targets nor offsets are made, and nothing waits for the GPU.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import anchors_and_classes

LOSS, NORM, GRADIENT = 0, 1, 2
PLACES = 256  # of a program
CLASSES = 16  # of a program, at most
LN2_HIGH = tl.constexpr(0.693359375)  # of 10 bits: a product with a whole number is exact
LN2_LOW = tl.constexpr(-2.12194440e-4)
LOG2_E = tl.constexpr(1.4426950408889634)


class Targets(NamedTuple):
    """Labels (N, R) of all levels, contiguous; where those of this level begin; and K."""

    labels: Tensor
    start: int
    num_classes: int


def find_targets(levels, labels):
    """list[Targets]: see the package."""
    num_anchors, num_classes = anchors_and_classes(levels, labels)
    labels, targets, start = labels.contiguous(), [], 0
    for x in levels:
        targets.append(Targets(labels, start, num_classes))
        start += x.shape[2] * x.shape[3] * num_anchors
    return targets


def total_loss(levels, targets):
    """Tensor: see the package."""
    return _total(levels, targets, LOSS)


def gradient_norm(levels, targets):
    """Tensor: see the package."""
    return _total(levels, targets, NORM)


def _total(levels, targets, kind):
    # Each program has a place of its own for its sum, so that the result repeats bit for bit.
    sums = [
        torch.empty(_num_programs(x, t.num_classes), dtype=torch.float32, device=x.device)
        for x, t in zip(levels, targets)
    ]
    for x, t, out in zip(levels, targets, sums):
        _launch(x, t, out, None, kind)
    return torch.cat(sums).sum(dtype=torch.float64).float()


def gradients(levels, targets, scale):
    """list[Tensor]: see the package."""
    results = [torch.empty_like(x) for x in levels]
    for x, t, out in zip(levels, targets, results):
        _launch(x, t, out, scale, GRADIENT)
    return results


def _num_programs(x, num_classes):
    num_images, channels, height, width = x.shape
    planes = num_images * channels // num_classes
    return planes * triton.cdiv(height * width, PLACES) * triton.cdiv(num_classes, CLASSES)


def _launch(x, targets, out, scale, kind):
    labels, start, num_classes = targets
    num_places = x.shape[2] * x.shape[3]
    if x.numel() == 0:
        return
    with torch.cuda.device_of(x):  # Triton takes the current GPU otherwise
        _sigmoid_bce[(_num_programs(x, num_classes),)](
            x,
            labels,
            out,
            x if scale is None else scale,
            start,
            labels.stride(0),
            x.shape[1] // num_classes,
            num_classes,
            num_places,
            x.stride(0),
            x.stride(1),
            x.stride(3) if x.shape[3] > 1 else x.stride(2),
            kind,
            PLACES,
            min(CLASSES, triton.next_power_of_2(num_classes)),
        )


@triton.jit
def _exp(x):
    """exp(x) for x <= 0; the hardware's 2^y of y = x log2(e) would be 7e-7 off at x = -11.5."""
    x = tl.where(x < -104.0, -104.0, x)  # there it is 0; -inf would be -inf + inf
    n = tl.floor(x * LOG2_E + 0.5)
    rest = x - n * LN2_HIGH - n * LN2_LOW
    return tl.exp(rest) * tl.exp2(n)


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0: 2 atanh(x / (2 + x)) by its series up to x = 1."""
    small = tl.where(x > 1.0, 1.0, x)  # unlike a minimum it hands on what is no number
    s = small / (2.0 + small)
    q = s * s
    p = 1.0 / 15 + q * (1.0 / 17)
    p = 1.0 / 13 + q * p
    p = 1.0 / 11 + q * p
    p = 1.0 / 9 + q * p
    p = 1.0 / 7 + q * p
    p = 1.0 / 5 + q * p
    p = 1.0 / 3 + q * p
    return tl.where(x > 1.0, tl.log(1.0 + x), 2 * s * (1.0 + q * p))


@triton.jit
def _either(a, b):
    """(1 + a)(1 + b) - 1, without the 1 that small ones would be lost beside."""
    return a + b + a * b


@triton.jit
def _sigmoid_bce(
    x_ptr,
    label_ptr,
    out_ptr,
    scale_ptr,
    start,
    labels_of_image,
    num_anchors,
    num_classes,
    num_places,
    of_image,
    of_channel,
    of_place,
    KIND: tl.constexpr,
    PLACES: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """A tile (CLASSES, PLACES) of one anchor of one image; ``of_*`` are strides of the logits."""
    program = tl.program_id(0)
    class_tiles = tl.cdiv(num_classes, CLASSES)
    place_tiles = tl.cdiv(num_places, PLACES)
    plane = program // (class_tiles * place_tiles)
    image = (plane // num_anchors).to(tl.int64)
    anchor = plane % num_anchors
    places = (program // class_tiles % place_tiles) * PLACES + tl.arange(0, PLACES)
    classes = (program % class_tiles) * CLASSES + tl.arange(0, CLASSES)

    rows = image * labels_of_image + start + places.to(tl.int64) * num_anchors + anchor
    labels = tl.load(label_ptr + rows, mask=places < num_places, other=-1)
    inside = (classes < num_classes)[:, None] & (places < num_places)[None, :]
    valid = inside & ((labels >= 0) & (labels <= num_classes))[None, :]
    channels = (anchor * num_classes + classes).to(tl.int64)
    offsets = image * of_image + (
        (channels * of_channel)[:, None] + (places.to(tl.int64) * of_place)[None, :]
    )
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    sign = tl.where(labels[None, :] == classes[:, None], -1.0, 1.0)
    x = x * sign

    e = _exp(-tl.abs(x))
    if KIND == 0:
        # softplus(x) = max(x, 0) + log1p(exp(-|x|)), and a sum of logarithms is one of a product.
        product = tl.reduce(tl.where(valid, e, 0.0), 0, _either)
        total = tl.sum(_log1p(product)) + tl.sum(tl.where(valid, tl.maximum(x, 0.0), 0.0))
        tl.store(out_ptr + program, total)
    else:
        sigmoid = tl.where(x >= 0, 1.0, e) / (1.0 + e)
        sigmoid = tl.where(valid, sigmoid, 0.0)
        if KIND == 1:
            tl.store(out_ptr + program, tl.sum(sigmoid))
        else:
            gradient = sign * sigmoid * tl.load(scale_ptr)
            tl.store(out_ptr + offsets, gradient.to(out_ptr.dtype.element_ty), mask=inside)
