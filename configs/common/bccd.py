"""BCCD: 364 microscope images of blood cells, PASCAL VOC style, under $DETECTRON2_DATASETS/bccd.

240 px on the short side, flips only; small enough for one CPU core.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from sampling_free import register_voc

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


def bccd_schedule(name, lr):
    """The training nodes of every detector on BCCD.

    Args:
        name (str): of the config, for the output folder.
        lr (float): learning rate of SGD.

    Returns:
        tuple[DictConfig]: lr_multiplier, optimizer, train
    """
    train = model_zoo.get_config("common/train.py").train
    train.update(output_dir=f"output/bccd_{name}", max_iter=400, eval_period=0, num_pictures=8)
    optimizer = model_zoo.get_config("common/optim.py").SGD
    optimizer.lr = lr
    lr_multiplier = L(WarmupParamScheduler)(
        scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
        warmup_length=50 / 400,
        warmup_method="linear",
        warmup_factor=0.01,
    )
    return lr_multiplier, optimizer, train
