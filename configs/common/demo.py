"""The embedded synthetic set (easy, 96 to 128 px) and the schedule of the quick runs on it."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from sampling_free import register_synthetic

from .data import dataloader

NUM_CLASSES = 5


def synthetic(split):
    """The node that writes a split of the easy set if need be, registers it and gives its name."""
    return L(register_synthetic)(name=f"demo_{split}", split=split, image_size=[96, 128])


dataloader.train.dataset.names = synthetic("train")
dataloader.train.dataset.filter_empty = False
dataloader.train.mapper.augmentations = [L(T.RandomFlip)(horizontal=True)]
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 0
dataloader.test.dataset.names = synthetic("val")
dataloader.test.mapper.augmentations = []
dataloader.test.num_workers = 0


def demo_schedule(output_dir, lr, max_iter=700):
    """The training nodes of every detector on the embedded set.

    Args:
        output_dir (str):
        lr (float): learning rate of SGD.
        max_iter (int): the first 50 of them are the warm-up.

    Returns:
        tuple[DictConfig]: lr_multiplier, optimizer, train
    """
    train = model_zoo.get_config("common/train.py").train
    train.update(output_dir=output_dir, seed=0, max_iter=max_iter, eval_period=0, num_pictures=8)
    optimizer = model_zoo.get_config("common/optim.py").SGD
    optimizer.lr = lr
    lr_multiplier = L(WarmupParamScheduler)(
        scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
        warmup_length=50 / max_iter,
        warmup_factor=0.01,
    )
    return lr_multiplier, optimizer, train
