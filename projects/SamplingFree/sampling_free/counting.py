"""Counts what a detector takes for foreground and background in a data set.

The labels come from *the detector's own* assignment: its anchors, matcher and thresholds, on the
annotations and image sizes alone. No image is decoded and no backbone is run. Every image
is padded by itself to the size divisibility; batches pad to their largest image, which adds some
background, well inside the flat part of the loss.

    R anchors of all levels   L levels   K classes
"""

import copy
import logging
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.structures import ImageList
from tqdm import tqdm

from .assignment import assignment_of
from .errors import BadInput
from .views import enumerate_views, sampled_names, seeded

logger = logging.getLogger(__name__)

NUM_PASSES = 3  # over the images, where augmentations are drawn


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


def count_anchors(model, dataset_dicts, mapper, *, num_passes=NUM_PASSES, seed=0, progress=True):
    """Counts the labels that a detector gives to its anchors over a whole training set.

    Args:
        model (nn.Module): stock or sampling-free, see :func:`assignment_of`; runs on its device.
        dataset_dicts (list[dict]): in Detectron2's format, with "height" and "width".
        mapper (DatasetMapper): the training mapper; its augmentations and its own way to
            transform annotations are used.
        num_passes (int): how often an image is visited if an augmentation must be drawn.
        seed (int): of those draws.
        progress (bool): show a progress bar.

    Returns:
        AnchorCounts

    Raises:
        BadInput: if the mapper is no DatasetMapper or a dict has no size.
    """
    mapper = boxes_only(mapper)
    augmentations = mapper.augmentations.augs
    sampled = sampled_names(augmentations)
    if sampled:
        logger.info(
            f"{', '.join(sampled)}: drawn at random on boxes and sizes, {num_passes} passes, "
            f"seed {seed}; everything else is exact."
        )
    num_passes = num_passes if sampled else 1

    assignment = assignment_of(model)
    strides, num_classes = assignment.strides, assignment.num_classes
    valid = np.zeros(len(strides))
    foreground = np.zeros(len(strides))
    per_class = np.zeros(num_classes)
    num_empty, num_objects, num_unreached = 0, 0.0, 0.0
    anchors_of = _AnchorCache(assignment)
    images = tqdm(
        dataset_dicts, "counting anchors", unit="image", mininterval=1, disable=not progress
    )
    for index, image in enumerate(images):
        if "height" not in image or "width" not in image:
            raise BadInput(f"{image.get('file_name', index)}: its record has no height and width")
        num_empty += not any(not a.get("iscrowd", 0) for a in image.get("annotations", []))
        for number in range(num_passes):
            with seeded(seed, number, index):
                views = enumerate_views(augmentations, (image["height"], image["width"]))
            for view in views:
                weight = view.weight / num_passes
                levels = anchors_of(view.size)
                instances = _instances(mapper, image, view)
                labels, boxes = assignment.labels_and_boxes(levels, instances)
                is_foreground = (labels >= 0) & (labels < num_classes)
                num_objects += weight * len(instances)
                num_unreached += weight * _num_unreached(instances, boxes[is_foreground])
                sizes = [len(x) for x in levels]
                valid += weight * _per_level(labels >= 0, sizes)
                foreground += weight * _per_level(is_foreground, sizes)
                classes = labels[is_foreground]
                per_class += weight * classes.bincount(minlength=num_classes).cpu().numpy()
    return AnchorCounts(
        valid,
        foreground,
        per_class,
        strides,
        len(dataset_dicts),
        num_empty,
        num_passes,
        num_objects,
        num_unreached,
    )


def padded_size(size, backbone):
    """(height, width) of an image that is padded by itself, by Detectron2's own rule.

    Args:
        size (tuple[int, int]): (height, width) in pixels.
        backbone (Backbone): its ``size_divisibility`` and, where it has them, constraints.
    """
    constraints = getattr(backbone, "padding_constraints", None)
    images = ImageList.from_tensors(
        [torch.empty(1, *size, device="meta")],
        backbone.size_divisibility,
        **({"padding_constraints": constraints} if constraints else {}),
    )
    return tuple(images.tensor.shape[-2:])


class _AnchorCache:
    """Anchors of every level for an image size, of which a training set has few after padding."""

    def __init__(self, assignment, max_entries=64):
        self.assignment = assignment
        self.max_entries = max_entries
        self.entries = {}

    def __call__(self, size):
        height, width = padded_size(size, self.assignment.backbone)
        if (height, width) not in self.entries:
            if len(self.entries) == self.max_entries:
                self.entries.pop(next(iter(self.entries)))
            # Convolutions and pooling of stride 2 round up, so level sizes are ceil(size / stride).
            features = [
                torch.empty(1, 1, -(-height // s), -(-width // s), device=self.assignment.device)
                for s in self.assignment.strides
            ]
            self.entries[height, width] = self.assignment.anchor_generator(features)
        return self.entries[height, width]


def boxes_only(mapper):
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


def _instances(mapper, image, view):
    """The ground truth of a view exactly as the mapper gives it to the detector."""
    record = {"annotations": [dict(a) for a in image.get("annotations", [])]}
    mapper._transform_annotations(record, view.transforms, view.size)
    return record["instances"]


def _num_unreached(instances, boxes):
    """Objects that are not among the ``boxes`` (N_f, 4) of the foreground anchors."""
    objects = instances.gt_boxes.tensor.to(boxes)
    reached = (objects.unsqueeze(1) == boxes.unique(dim=0)).all(dim=2).any(dim=1)
    return len(objects) - int(reached.sum())


def _per_level(mask, sizes):
    return np.array([int(m.sum()) for m in mask.split(sizes)], dtype=np.float64)
