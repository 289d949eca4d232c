"""The demo: sampling-free RetinaNet R18 on the embedded synthetic set, from random weights.

Command:  make demo   (or: python train_net.py --config-file configs/demo/retinanet.py)
Hardware: two CPU cores, or one.
Cost:     700 iterations of 8 images; under 8 minutes.
Expected: AP50 of about 90 on the validation part: 89.2 to 91.7 over three seeds,
          results/demo.json.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from sampling_free.data import register_synthetic

from ..common.data import dataloader
from ..common.optim import SGD as optimizer
from ..common.small_retinanet import model

train = model_zoo.get_config("common/train.py").train
train.update(
    output_dir="output/demo",
    seed=0,
    max_iter=700,
    eval_period=0,
    num_pictures=8,
)


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

model.num_classes = 5
optimizer.lr = 0.04
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=50 / 700,
    warmup_factor=0.01,
)
