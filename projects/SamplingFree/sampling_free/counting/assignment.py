"""Which samples a detector takes for foreground: its own label assignment behind one interface.

    R anchors (or points) of all levels   K classes; one for the objectness of an RPN

Works for Detectron2's detectors and for the sampling-free ones alike.
"""

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..detectors.atss import ATSS
from ..detectors.bias import PriorBias
from ..detectors.rpn import SamplingFreeRPN, one_class
from ..utils.errors import BadInput

MOST_KNOWN = 2**16  # sizes


def assignment_of(model: "nn.Module | Assignment") -> "Assignment":
    """The assignment of a RetinaNet, an FCOS, an ATSS, a PAA, or the RPN of an R-CNN.

    PAA's depends on the network; ATSS' stands for it, see detectors/paa.py.

    Args:
        model: the whole detector, with its backbone; an assignment is returned as it is.

    Raises:
        BadInput: for another detector.
    """
    if isinstance(model, Assignment):
        return model
    rpn = getattr(model, "proposal_generator", None)
    if isinstance(rpn, RPN):
        return _RPNAssignment(model, rpn)
    if isinstance(model, ATSS):
        return _ATSSAssignment(model, model)
    if isinstance(model, FCOS):
        return _FCOSAssignment(model, model)
    if all(hasattr(model, x) for x in ("label_anchors", "anchor_generator", "anchor_matcher")):
        return Assignment(model, model)
    raise BadInput(
        f"the prior of {type(model).__name__} cannot be counted; known are RetinaNet, FCOS, ATSS, "
        "PAA and R-CNNs with an RPN; set the prior to a number"
    )


class Assignment:
    """Of a RetinaNet; the base of the others.

    Attributes:
        backbone (Backbone): says how an image is padded.
        anchor_generator (nn.Module): called with the feature maps, gives each level's anchors.
        strides (list[int]): (L,) pixels.
        num_classes (int): K.
        class_names (list[str] or None): None stands for those of the data set.
        prior_key (str): where a LazyConfig has the prior.
    """

    class_names = None
    prior_key = PriorBias.prior_key

    def __init__(self, model, head):
        """Args: head (nn.Module): the part of ``model`` that assigns labels."""
        self.backbone = model.backbone
        self.device = model.device
        self.head = head
        self.anchor_generator = head.anchor_generator
        self.strides = [int(s) for s in head.anchor_generator.strides]
        self.num_classes = getattr(head, "num_classes", 1)

    @torch.no_grad()
    def labels_and_boxes(self, levels: list[Boxes], instances: Instances) -> tuple[Tensor, Tensor]:
        """Labels the anchors of an image.

        Args:
            levels: anchors of each level.
            instances: ground truth of one image.

        Returns:
            (R,) -1 ignored, 0..K-1 foreground of that class, K background;
            and (R, 4), the box of each foreground anchor's object.
        """
        labels, boxes = self.head.label_anchors(levels, [instances.to(self.device)])
        return labels[0], getattr(boxes[0], "tensor", boxes[0])

    def settings(self) -> dict[str, Any]:
        """What the labels depend on besides the annotations, as plain JSON values."""
        generator = self.anchor_generator
        return {
            "number of classes": self.num_classes,
            "size divisibility": self.backbone.size_divisibility,
            "padding": dict(getattr(self.backbone, "padding_constraints", None) or {}),
            "anchors": [np.round(x.cpu().numpy(), 3).tolist() for x in generator.cell_anchors],
            "strides": self.strides,
            "anchor offset": float(generator.offset),
            **{k: str(x) if x in (math.inf, -math.inf) else x for k, x in self.matching().items()},
        }

    def matching(self) -> dict[str, Any]:
        """The part of :meth:`settings` that says when an anchor is foreground."""
        matcher = self.head.anchor_matcher
        return {
            "matcher thresholds": [float(x) for x in matcher.thresholds[1:-1]],
            "matcher labels": [int(x) for x in matcher.labels],
            "low quality matches": bool(matcher.allow_low_quality_matches),
        }


class _FCOSAssignment(Assignment):
    def matching(self) -> dict[str, Any]:
        return {"center sampling radius": float(self.head.center_sampling_radius)}


class _ATSSAssignment(Assignment):
    def matching(self) -> dict[str, Any]:
        return {"assignment": "ATSS", "candidates of a level": int(self.head.topk)}


class _RPNAssignment(Assignment):
    class_names = ["object"]
    prior_key = SamplingFreeRPN.prior_key

    def __init__(self, model, head):
        unsampled = copy.copy(head)
        unsampled._subsample_labels = lambda labels: labels
        super().__init__(model, unsampled)

    @torch.no_grad()
    def labels_and_boxes(self, levels, instances):
        labels, boxes = self.head.label_and_sample_anchors(levels, [instances.to(self.device)])
        return one_class(labels[0]), boxes[0]

    def matching(self) -> dict[str, Any]:
        threshold = float(self.head.anchor_boundary_thresh)
        return {**super().matching(), "anchor boundary threshold": threshold}


def padded_size(size: tuple[int, int], backbone) -> tuple[int, int]:
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
    """Shapes of the feature maps of images, from their sizes alone; remembers each size."""

    def __init__(self, assignment: Assignment):
        backbone = assignment.backbone
        self.padding = SimpleNamespace(
            size_divisibility=backbone.size_divisibility,
            padding_constraints=getattr(backbone, "padding_constraints", None),
        )
        self.strides = np.array(assignment.strides)
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
