"""Baseline: PAA R50 with focal loss on COCO, the authors' recipe.

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/paa/paa_R_50_FPN_1x_authors_focal.py
Hardware: 8 GPUs of 8 GB or more; not measured.
Cost:     90,000 iterations of 16 images; not measured.
Expected: not run by us. Published: 40.4 AP on val.
"""

from ..common.baselines import focal_baseline
from .paa_R_50_FPN_1x_authors import dataloader, lr_multiplier, model, optimizer, train

focal_baseline(model)
train.output_dir = "output/paa_R_50_FPN_1x_authors_focal"
