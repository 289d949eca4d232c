"""Extreme labels, predictions and boxes, drawn from a seed; what the fuzz tests feed to losses.

N images   R samples   K classes
"""

import zlib

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch.nn import functional as F

SIZE = (64, 96)  # of an image
DTYPES = (None, "bfloat16", "float16")
# Around the ends of float32's precision and of its exponential, and beyond.
EDGES = (0.0, 11.5, 17.0, 50.0, 87.0, 88.5, 100.0, 103.9, 110.0, 1e4)


class Draw:
    """Draws patterns; the same ones for the same seed."""

    def __init__(self, *seed):
        self.rng = np.random.default_rng(zlib.crc32(repr(seed).encode()))

    def one(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def normal(self, shape, scale):
        return torch.from_numpy(self.rng.normal(0, scale, shape).astype(np.float32))

    def labels(self, shape, num_classes, ignores=True):
        """0..K-1 foreground, K background, -1 ignored: all of one kind, all but one, or mixed."""
        foreground = torch.from_numpy(self.rng.integers(num_classes, size=shape))
        rest = self.one(num_classes, num_classes, -1 if ignores else num_classes)
        labels = torch.full(shape, rest)
        share = torch.from_numpy(self.rng.random(shape))
        kind = self.one("none", "one", "some", "all")
        if kind == "one" and labels.numel():
            chosen = share == share.max()
        else:
            chosen = share < {"none": 0, "one": 0, "some": 0.2, "all": 1}[kind]
        if ignores and kind == "some":
            labels = torch.where(share > 0.8, -1, labels)
        return torch.where(chosen, foreground, labels)

    def logits(self, labels, num_logits):
        """(..., num_logits), drawn freely, or made right or wrong for the labels."""
        shape = (*labels.shape, num_logits)
        kind = self.one("small", "prior", "large", "huge", "edges", "right", "right", "wrong")
        if kind == "edges":
            values = [self.one(-1, 1) * self.one(*EDGES) for _ in range(self.one(1, 2, 5))]
            return torch.from_numpy(self.rng.choice(values, shape).astype(np.float32))
        if kind in ("right", "wrong"):
            background = torch.where(labels < 0, num_logits, labels)
            one_hot = F.one_hot(background, num_logits + 1)[..., :num_logits]
            high = self.one(*EDGES)
            low = self.one(high, *EDGES)
            logits = torch.where(one_hot.bool(), high, -low)
            return logits if kind == "right" else -logits
        scale, shift = {"small": (1, 0), "prior": (1, -11.5), "large": (60, 0), "huge": (1e4, 0)}[
            kind
        ]
        return self.normal(shape, scale) + shift

    def deltas(self, shape, largest):
        """What a box head predicts, up to +-largest."""
        kind = self.one("zero", "small", "large", "huge", "one value", "one coordinate")
        if kind == "one value":
            return torch.full(shape, self.one(-largest, largest, 4.2, -100.0))
        if kind == "one coordinate":
            coordinate = F.one_hot(torch.tensor(self.rng.integers(shape[-1])), shape[-1])
            return (coordinate * self.one(-largest, largest)).float().expand(shape).clone()
        scale = {"zero": 0, "small": 0.1, "large": 5, "huge": largest / 4}[kind]
        return self.normal(shape, scale).clamp(-largest, largest)

    def boxes(self, num, smallest=0.01):
        """(num, 4) XYXY, in the image and beside it, with sides of ``smallest`` pixels and more."""
        low, high = self.one((smallest, 10 * smallest), (1, 60), (50, 1000), (smallest, 1000))
        centers = self.rng.uniform(-20, 110, (num, 2))
        sides = np.exp(self.rng.uniform(np.log(low), np.log(high), (num, 2)))
        return torch.from_numpy(np.hstack([centers - sides / 2, centers + sides / 2])).float()

    def objects(self, num_classes):
        """Instances: an image's ground truth as a mapper leaves it, often of no object."""
        boxes = Boxes(self.boxes(self.one(0, 0, 1, 1, 3, 12)))
        boxes.clip(SIZE)
        boxes = boxes[boxes.nonempty(1e-5)]
        classes = torch.from_numpy(self.rng.integers(num_classes, size=len(boxes)))
        return Instances(SIZE, gt_boxes=boxes, gt_classes=classes)


def leaves(tensors, dtype):
    """As a head gives them out under autocast, ready for a gradient.

    Args:
        tensors (list[Tensor]): float32.
        dtype (str or None): of DTYPES.
    """
    dtype = getattr(torch, dtype or "float32")
    end = torch.finfo(dtype).max
    return [x.clamp(-end, end).to(dtype).requires_grad_() for x in tensors]


# Box losses beyond float16's end have an infinite gradient there, which is the scaler's.


def largest_delta(dtype):
    """float: that a box head is to predict."""
    return 1e3 if dtype == "float16" else 1e4


def smallest_side(dtype):
    """float: of a proposal; what a box head has to predict is divided by it."""
    return 1.0 if dtype == "float16" else 0.01
