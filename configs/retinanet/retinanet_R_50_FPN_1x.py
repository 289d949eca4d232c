"""Sampling-free RetinaNet R50 on COCO, Detectron2's recipe (L1 box loss, 640-800 px).

Command:  python train_net.py --config-file configs/retinanet/retinanet_R_50_FPN_1x.py --num-gpus 8
Hardware: 8 GPUs; Detectron2's focal baseline takes 0.205 s an iteration on V100, 5 hours.
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
