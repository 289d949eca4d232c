"""Counts what a detector takes for foreground and background in a data set.

The labels are those of *the detector's own* assignment: its anchors, matcher and thresholds, on the
annotations and image sizes alone. No image is decoded and no backbone is run. Every image
is padded by itself to the size divisibility; batches pad to their largest image, which adds some
background, well inside the flat part of the loss.

Only anchors near an object are looked at, where that is known to give the same labels
(sparse/select.py); else the detector labels every anchor of every view.

    R anchors of all levels   L levels   K classes
"""

import copy
import logging

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.structures import Instances
from torch import nn
from tqdm import tqdm

from ..utils.errors import BadInput
from .assignment import Assignment, LevelShapes, assignment_of
from .counts import AnchorCounts, Tally
from .sparse.select import Unknown, sparse_matcher
from .sparse_count import tally_sparsely
from .views import mapped_views, sampled_names

logger = logging.getLogger(__name__)

NUM_PASSES = 3  # over the images, where augmentations are drawn


def count_anchors(
    model: nn.Module | Assignment,
    dataset_dicts: list[dict],
    mapper: DatasetMapper,
    *,
    num_passes: int = NUM_PASSES,
    seed: int = 0,
    progress: bool = True,
    num_workers: int = 0,
) -> AnchorCounts:
    """Counts the labels that a detector gives to its anchors over a whole training set.

    Args:
        model: stock or sampling-free, or its :func:`assignment_of`.
        dataset_dicts: in Detectron2's format, with "height" and "width".
        mapper: the training mapper; its augmentations and its own way to
            transform annotations are used.
        num_passes: how often an image is visited if an augmentation must be drawn.
        seed: of those draws.
        progress: show a progress bar.
        num_workers: processes that count, 0 for this one alone. The counts are the same for
            any number. Where the detector has to label every anchor, this process does it alone.

    Raises:
        BadInput: if the mapper is no DatasetMapper or a dict has no size.
    """
    if type(num_workers) is not int or num_workers < 0:
        raise BadInput(f"num_workers={num_workers!r}: give a whole number of processes from 0 up")
    assignment, mapper = assignment_of(model), boxes_only(mapper)
    try:
        matcher = sparse_matcher(assignment, mapper)
    except Unknown as e:
        logger.info(f"Every anchor is compared with every object, which is slow: {e}.")
        return count_by_brute_force(
            assignment, dataset_dicts, mapper, num_passes=num_passes, seed=seed, progress=progress
        )
    num_passes = _num_passes(mapper, num_passes, seed)
    tally = tally_sparsely(
        assignment,
        matcher,
        dataset_dicts,
        mapper,
        num_passes=num_passes,
        seed=seed,
        progress=progress,
        num_workers=num_workers,
    )
    return _counts(tally, assignment, dataset_dicts, num_passes)


def count_by_brute_force(
    model: nn.Module | Assignment,
    dataset_dicts: list[dict],
    mapper: DatasetMapper,
    *,
    num_passes: int = NUM_PASSES,
    seed: int = 0,
    progress: bool = True,
) -> AnchorCounts:
    """:func:`count_anchors` of any detector, by its own label of every anchor, on its device."""
    assignment, mapper = assignment_of(model), boxes_only(mapper)
    num_passes = _num_passes(mapper, num_passes, seed)
    labels = LabelTally(assignment)
    images = tqdm(
        dataset_dicts, "counting anchors", unit="image", mininterval=1, disable=not progress
    )
    for index, image in enumerate(images):
        for weight, size, instances in mapped_views(mapper, image, index, num_passes, seed):
            labels.add(weight, size, instances)
    return _counts(labels.tally, assignment, dataset_dicts, num_passes)


def is_fast(model: nn.Module | Assignment, mapper: DatasetMapper) -> bool:
    """Whether counting takes a fraction of a millisecond an image: sparse, and nothing is drawn."""
    try:
        sparse_matcher(assignment_of(model), boxes_only(mapper))
    except Unknown:
        return False
    return not sampled_names(mapper.augmentations.augs)


def boxes_only(mapper: DatasetMapper) -> DatasetMapper:
    """A copy of the mapper that skips masks, unless boxes are recomputed from them."""
    if not isinstance(mapper, DatasetMapper):
        raise BadInput(
            f"dataloader.train.mapper: cannot read the augmentations of {type(mapper).__name__}, "
            "which is no DatasetMapper; set model.prior to a number"
        )
    mapper = copy.copy(mapper)
    mapper.use_instance_mask = mapper.use_instance_mask and mapper.recompute_boxes
    mapper.use_keypoint = False
    return mapper


def _num_passes(mapper, num_passes, seed):
    """How often each image is visited; says so where something is drawn."""
    sampled = sampled_names(mapper.augmentations.augs)
    if not sampled:
        return 1
    logger.info(
        f"{', '.join(sampled)}: drawn at random on boxes and sizes, {num_passes} passes, "
        f"seed {seed}; everything else is exact."
    )
    return num_passes


def _counts(tally, assignment, dataset_dicts, num_passes):
    has_object = [
        any(not a.get("iscrowd", 0) for a in image.get("annotations", []))
        for image in dataset_dicts
    ]
    return tally.counts(
        strides=assignment.strides,
        num_images=len(dataset_dicts),
        num_empty_images=has_object.count(False),
        num_passes=num_passes,
    )


class LabelTally:
    """Tallies the labels that a detector gives to all its anchors, image by image.

    Attributes:
        assignment (Assignment):
        tally (Tally): of what was added.
    """

    def __init__(self, assignment):
        self.assignment = assignment
        self.tally = self.new_tally()
        self._anchors_of = _AnchorCache(assignment)

    def new_tally(self) -> Tally:
        """Makes an empty tally."""
        return Tally(len(self.assignment.strides), self.assignment.num_classes)

    def add(self, weight: float, size: tuple[int, int], instances: Instances) -> tuple[int, int]:
        """Labels the anchors of one image.

        Args:
            weight: of the view, in (0, 1].
            size: (height, width) in pixels, from which the image is padded.
            instances: its ground truth.

        Returns:
            Its foreground and its valid anchors.
        """
        num_classes = self.assignment.num_classes
        levels = self._anchors_of(size)
        labels, boxes = self.assignment.labels_and_boxes(levels, instances)
        is_foreground = (labels >= 0) & (labels < num_classes)
        sizes = [len(x) for x in levels]
        valid, foreground = _per_level(labels >= 0, sizes), _per_level(is_foreground, sizes)
        self.tally.add(
            weight,
            valid,
            foreground,
            labels[is_foreground].bincount(minlength=num_classes).cpu().numpy(),
            len(instances),
            _num_unreached(instances, boxes[is_foreground]),
        )
        return int(foreground.sum()), int(valid.sum())


class _AnchorCache:
    """Anchors of every level for an image size, of which a training set has few after padding."""

    def __init__(self, assignment, max_entries=64):
        self.assignment = assignment
        self.level_shapes = LevelShapes(assignment)
        self.max_entries = max_entries
        self.entries = {}

    def __call__(self, size):
        (shapes,) = self.level_shapes(np.array([size])).tolist()
        key = tuple(map(tuple, shapes))
        if key not in self.entries:
            if len(self.entries) == self.max_entries:
                self.entries.pop(next(iter(self.entries)))
            features = [torch.empty(1, 1, *x, device=self.assignment.device) for x in shapes]
            self.entries[key] = self.assignment.anchor_generator(features)
        return self.entries[key]


def _num_unreached(instances, boxes):
    """Objects that are not among the ``boxes`` (N_f, 4) of the foreground anchors."""
    objects = instances.gt_boxes.tensor.to(boxes)
    reached = (objects.unsqueeze(1) == boxes.unique(dim=0)).all(dim=2).any(dim=1)
    return len(objects) - int(reached.sum())


def _per_level(mask, sizes):
    return np.array([int(m.sum()) for m in mask.split(sizes)])
