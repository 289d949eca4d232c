"""Baseline of the quick run: PAA with focal loss; all else as in paa.py.

Command:  python train_net.py --config-file configs/demo/paa_focal.py
Hardware: two CPU cores, or one.
"""

from ..common.baselines import focal_baseline
from .paa import dataloader, lr_multiplier, model, optimizer, train

focal_baseline(model)
train.output_dir = "output/demo_paa_focal"
