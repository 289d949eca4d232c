"""Baseline: Detectron2's RetinaNet R101 with focal loss on COCO, the authors' recipe.

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/retinanet/retinanet_R_101_FPN_1x_authors_focal.py
Hardware: 8 GPUs.
Expected: not run by us. Published: 38.5 AP on val, 38.8 on test-dev, threshold 0.05.
"""

from ..common.focal import focal_baseline
from .retinanet_R_101_FPN_1x_authors import dataloader, lr_multiplier, model, optimizer, train

focal_baseline(model)
train.output_dir = "output/retinanet_R_101_FPN_1x_authors_focal"
