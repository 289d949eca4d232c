"""Mappers of one's own, loaders, and the labels of their batches."""

import copy

import detectron2.data.transforms as T
from detectron2.data import DatasetMapper
from fvcore.transforms.transform import CropTransform

from sampling_free.data.loader import build_replayable_train_loader

NAME = "test_measured_counts_train"


class Corner(T.Augmentation):
    """Cuts out a corner, which only its author knows."""

    def get_transform(self, image):
        height, width = image.shape[:2]
        return CropTransform(0, 0, width // 2, height // 2)


class CornerMapper(DatasetMapper):
    """As its base, but what its list of augmentations does not say."""

    def __call__(self, record):
        mapped = super().__call__(record)
        top = mapped["image"][:, :32, :32]
        instances = mapped["instances"]
        instances.gt_boxes.clip((32, 32))
        kept = instances[instances.gt_boxes.nonempty()]
        kept._image_size = (32, 32)
        return {**mapped, "image": top, "instances": kept}


def corner_mapper():
    return CornerMapper(is_train=True, augmentations=[], image_format="BGR")


def corner_function(record):
    return corner_mapper()(copy.deepcopy(record))


def replayable(dicts, mapper, **kwargs):
    return build_replayable_train_loader(dicts, mapper=mapper, total_batch_size=2, **kwargs)


def first(loader, num):
    return [x for x, _ in zip(loader, range(num))]
