"""Baseline: Detectron2's RetinaNet R101 with focal loss on COCO, Detectron2's recipe.

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/retinanet/retinanet_R_101_FPN_1x_focal.py
Hardware: 8 GPUs of 8 GB or more (4.1 to 5.2 GB each at 2 images, by Detectron2's model zoo).
Cost:     7 hours on V100, by Detectron2's model zoo (0.291 s an iteration with focal loss).
Expected: not run by us.
"""

from ..common.baselines import focal_baseline
from .retinanet_R_101_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

focal_baseline(model)
train.output_dir = "output/retinanet_R_101_FPN_1x_focal"
