"""Data and schedule of the runs behind docs/evidence.md: two sets, small enough for a CPU core.

BCCD has mild imbalance. The synthetic set has 80 classes, of which some are rare, and one object in
an image, or none: great imbalance. What would only make it slow to learn, as tiny objects, clutter
and noise, is less than in the setting "hard".
"""

from detectron2.config import LazyCall as L

from sampling_free.data import register_synthetic

from .bccd import dataloader as bccd_dataloader
from .demo import dataloader as hard_dataloader
from .demo import demo_schedule

HARD_CLASSES = 80


def hard(split):
    """The node that writes a split of the set if need be, registers it and gives its name."""
    return L(register_synthetic)(
        name=f"hard_{split}",
        split=split,
        setting="hard",
        train_images=2000,
        val_images=200,
        image_size=[160, 160],
        objects=[1, 1],
        min_size=32,
        size_skew=0.5,
        tail=1.5,
        empty=0.2,
        clutter=4,
        contrast=1.0,
        noise=6,
    )


bccd_dataloader.train.total_batch_size = 2
hard_dataloader.train.dataset.names = hard("train")
hard_dataloader.test.dataset.names = hard("test")
hard_dataloader.train.total_batch_size = 4


def schedule(name, max_iter):
    """The training nodes of every run, of the short schedule; the long one is four times as long.

    Args:
        name (str): of the config, for the output folder.
        max_iter (int): a tenth of them is the warm-up.

    Returns:
        tuple[DictConfig]: lr_multiplier, optimizer, train
    """
    lr_multiplier, optimizer, train = demo_schedule(f"output/evidence_{name}", 0.02, max_iter)
    lr_multiplier.warmup_length = 0.1
    return lr_multiplier, optimizer, train
