"""Sampling-free RetinaNet R50 on COCO, Detectron2's recipe (L1 box loss, 640-800 px).

Command:  python train_net.py --config-file configs/retinanet/retinanet_R_50_FPN_1x.py --num-gpus 8
Hardware: 8 GPUs of 8 GB or more (4.1 to 5.2 GB each at 2 images, by Detectron2's model zoo).
Cost:     5 hours on V100, by Detectron2's model zoo (0.205 s an iteration with focal loss).
Expected: not run by us. Detectron2's focal baseline: 37.4 AP (its model zoo).
"""

from detectron2 import model_zoo

from ..common.data import dataloader
from ..common.retinanet import model

_base = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.py")
optimizer = _base.optimizer
lr_multiplier = _base.lr_multiplier
train = _base.train

model.backbone.bottom_up.freeze_at = 2
train.output_dir = "output/retinanet_R_50_FPN_1x"
