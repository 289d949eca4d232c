"""Which sparse matcher gives the labels of a detector, or why none does."""

import torch
from detectron2.data import DatasetMapper
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.proposal_generator import RPN

from ...detectors.atss import ATSS
from .anchors import IoUMatcher
from .atss import ATSSMatcher
from .points import PointMatcher

FINEST = 256  # parts of a pixel; multiples of them are exact in float32 up to 65,536 pixels


class Unknown(Exception):
    """Why the sparse path does not know a detector's labels, in words."""


def sparse_matcher(assignment, mapper: DatasetMapper) -> IoUMatcher | PointMatcher | ATSSMatcher:
    """Chooses the sparse matcher that stands for a detector's assignment.

    Args:
        assignment (Assignment): of :func:`assignment_of`.
        mapper: makes the objects that are matched.

    Raises:
        Unknown: if only the detector itself can label its anchors.
    """
    if type(mapper)._transform_annotations is not DatasetMapper._transform_annotations:
        raise Unknown(f"{type(mapper).__name__} has its own way to transform annotations")
    head = assignment.head
    grid = _grid(assignment)
    if isinstance(head, RPN):
        _require_own(head, RPN, "label_and_sample_anchors")
        if head.anchor_boundary_thresh >= 0:
            raise Unknown(f"the RPN's anchor_boundary_thresh is {head.anchor_boundary_thresh:g}")
        return _iou_matcher(head.anchor_matcher, grid)
    if isinstance(head, ATSS):
        _require_own(head, ATSS, "label_anchors", "labels_and_boxes")
        if any(len(x) != 1 for x in grid[0]):
            raise Unknown("it has several anchors at each place")
        return ATSSMatcher(*grid, head.topk)  # type: ignore[call-arg]
    if isinstance(head, FCOS):
        match = (
            "match_anchors" if hasattr(FCOS, "match_anchors") else "_match_anchors"
        )  # v0.6 or main
        _require_own(head, FCOS, "label_anchors", match)
        if any(x.tolist() != [[-s / 2, -s / 2, s / 2, s / 2]] for x, s in zip(*grid[:2])):
            raise Unknown("its anchors are no squares as large as their stride")
        return PointMatcher(*grid[1:], head.center_sampling_radius)  # type: ignore[call-arg]
    _require_own(head, RetinaNet, "label_anchors")
    return _iou_matcher(head.anchor_matcher, grid)


def _grid(assignment):
    """Cell anchors of each level, strides and offset."""
    generator = assignment.anchor_generator
    if type(generator) is not DefaultAnchorGenerator:
        raise Unknown(f"its anchors come from a {type(generator).__name__}")
    if any(s != int(s) or generator.offset * s * FINEST % 1 for s in generator.strides):
        raise Unknown(
            f"float32 rounds the places of anchors with an offset of {generator.offset:g}"
        )
    cells = list(generator.cell_anchors)
    if any(x.dtype != torch.float32 for x in cells):
        raise Unknown(f"its anchors are {cells[0].dtype}")
    return tuple(x.cpu().numpy() for x in cells), tuple(assignment.strides), float(generator.offset)


def _require_own(head, cls, *names):
    """Methods have to be those that a sparse matcher stands for."""
    for name in names:
        if getattr(getattr(head, name, None), "__func__", None) is not getattr(cls, name):
            raise Unknown(f"{type(head).__name__} has its own {name}")


def _iou_matcher(matcher, grid):
    if type(matcher) is not Matcher:
        raise Unknown(f"its matcher is a {type(matcher).__name__}")
    if matcher.labels[0] != 0:
        raise Unknown(f"its matcher gives {matcher.labels[0]} to anchors without an overlap")
    thresholds = tuple(map(float, matcher.thresholds[1:-1]))
    labels = tuple(map(int, matcher.labels))
    return IoUMatcher(*grid, thresholds, labels, bool(matcher.allow_low_quality_matches))
