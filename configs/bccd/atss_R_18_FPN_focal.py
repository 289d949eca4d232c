"""Baseline on BCCD: ATSS with focal loss; all but the rate as in the full method.

Command:  python train_net.py --config-file configs/bccd/atss_R_18_FPN_focal.py
Hardware: one CPU core.
Cost:     400 iterations of 4 images; under 12 minutes.
Expected: AP 43.1, AP50 78.5 on test with seed 0 (one run), results/bccd_atss.json; the learning
          rate is the best of four on val, and the smallest.
"""

from ..common.baselines import focal_baseline
from .atss_R_18_FPN import dataloader, lr_multiplier, model, optimizer, train

focal_baseline(model)
optimizer.lr = 0.01
train.output_dir = "output/bccd_atss_R_18_FPN_focal"
