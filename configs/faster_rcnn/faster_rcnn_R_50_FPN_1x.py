"""Sampling-free Faster R-CNN R50 on COCO, Detectron2's recipe (L1 box loss, 640-800 px; box losses
as means over the coordinates, see sampling_free/convert.py).

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/faster_rcnn/faster_rcnn_R_50_FPN_1x.py
Hardware: 8 GPUs of 8 GB or more (3.0 GB each at 2 images, by Detectron2's model zoo).
Cost:     5.3 hours on V100, by Detectron2's model zoo (0.21 s an iteration of its own class).
Expected: not run by us. Detectron2's sampled baseline: 37.9 AP (its model zoo).
"""

from detectron2 import model_zoo

from ..common.data import dataloader
from ..common.rcnn import rcnn, without_masks

_base = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
optimizer = _base.optimizer
lr_multiplier = _base.lr_multiplier
train = _base.train

model = without_masks(rcnn("mask_rcnn_fpn"))
model.backbone.bottom_up.freeze_at = 2
train.output_dir = "output/faster_rcnn_R_50_FPN_1x"
