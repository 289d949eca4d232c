"""Baseline: PAA R50 with focal loss on COCO, Detectron2's recipe.

Command:  python train_net.py --config-file configs/paa/paa_R_50_FPN_1x_focal.py --num-gpus 8
Hardware: 8 GPUs of 8 GB or more; not measured.
Cost:     90,000 iterations of 16 images; not measured.
Expected: not run by us.
"""

from ..common.baselines import focal_baseline
from .paa_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

focal_baseline(model)
train.output_dir = "output/paa_R_50_FPN_1x_focal"
