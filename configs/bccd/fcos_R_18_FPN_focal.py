"""Baseline on BCCD: Detectron2's FCOS with focal loss; all else as in the full method.

Command:  python train_net.py --config-file configs/bccd/fcos_R_18_FPN_focal.py
Hardware: one CPU core.
Cost:     400 iterations of 4 images; under 12 minutes.
Expected: AP 37.2, AP50 59.8 on test with seed 0 (one run), results/bccd_fcos.json.
"""

from ..common.baselines import focal_baseline
from .fcos_R_18_FPN import dataloader, lr_multiplier, model, optimizer, train

focal_baseline(model)
train.output_dir = "output/bccd_fcos_R_18_FPN_focal"
