"""Baseline of the quick run: ATSS with focal loss; all else as in atss.py.

Command:  python train_net.py --config-file configs/demo/atss_focal.py
Hardware: two CPU cores, or one.
Cost:     500 iterations of 8 images; under 8 minutes.
Expected: AP 60.0 and 65.8, AP50 81.6 and 89.7 on the validation part with two seeds,
          results/demo_points.json. The learning rate is FCOS', not tuned.
"""

from ..common.baselines import focal_baseline
from .atss import dataloader, lr_multiplier, model, optimizer, train

focal_baseline(model)
train.output_dir = "output/demo_atss_focal"
