"""Baseline: Detectron2's FCOS R50 with focal loss on COCO, the authors' recipe but for the weights
of the box loss, which Detectron2's class does not have.

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/fcos/fcos_R_50_FPN_1x_authors_focal.py
Hardware: 8 GPUs of 8 GB or more; not measured.
Cost:     90,000 iterations of 16 images; not measured.
Expected: not run by us. Published: 37.1 AP on val.
"""

from ..common.baselines import focal_baseline
from .fcos_R_50_FPN_1x_authors import dataloader, lr_multiplier, model, optimizer, train

focal_baseline(model)
train.output_dir = "output/fcos_R_50_FPN_1x_authors_focal"
