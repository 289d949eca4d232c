"""Baseline on BCCD: Detectron2's RetinaNet with focal loss; all else as in the full method.

Command:  python train_net.py --config-file configs/bccd/retinanet_R_18_FPN_focal.py
Hardware: one CPU core.
Cost:     as the full method.
Expected: AP 35.4, AP50 68.1 on test with seed 0 (one run), results/bccd.json.
"""

from ..common.baselines import focal_baseline
from .retinanet_R_18_FPN import dataloader, lr_multiplier, model, optimizer, train

focal_baseline(model)
optimizer.lr = 0.04  # the best of 0.02, 0.04, 0.08 on val, see results/bccd.json
train.output_dir = "output/bccd_retinanet_R_18_FPN_focal"
