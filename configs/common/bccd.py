"""BCCD: 364 microscope images of blood cells, PASCAL VOC style, under $DETECTRON2_DATASETS/bccd.

240 px on the short side, flips only; small enough for one CPU core.
"""

from detectron2.config import LazyCall as L

from sampling_free.data import register_voc

from .data import dataloader

CLASSES = ["RBC", "WBC", "Platelets"]


def bccd(split):
    """The node that registers a split and gives its name."""
    return L(register_voc)(name=f"bccd_{split}", root="bccd", split=split, classes=CLASSES)


dataloader.train.dataset.names = bccd("trainval")
dataloader.test.dataset.names = bccd("test")
dataloader.train.mapper.augmentations[0].short_edge_length = (240,)
dataloader.test.mapper.augmentations[0].short_edge_length = 240
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 0
dataloader.test.num_workers = 0
