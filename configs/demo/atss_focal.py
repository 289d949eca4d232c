"""Baseline of the quick run: ATSS with focal loss; all else as in atss.py.

Command:  python train_net.py --config-file configs/demo/atss_focal.py
Hardware: two CPU cores, or one.
"""

from ..common.baselines import focal_baseline
from .atss import dataloader, lr_multiplier, model, optimizer, train

focal_baseline(model)
train.output_dir = "output/demo_atss_focal"
