"""Baseline on BCCD: ATSS with focal loss; all else as in the full method.

Command:  python train_net.py --config-file configs/bccd/atss_R_18_FPN_focal.py
Hardware: one CPU core.
Cost:     400 iterations of 4 images; under 12 minutes.
"""

from ..common.baselines import focal_baseline
from .atss_R_18_FPN import dataloader, lr_multiplier, model, optimizer, train

focal_baseline(model)
train.output_dir = "output/bccd_atss_R_18_FPN_focal"
