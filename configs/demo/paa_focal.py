"""Baseline of the quick run: PAA with focal loss; all else as in paa.py.

Command:  python train_net.py --config-file configs/demo/paa_focal.py
Hardware: two CPU cores, or one.
Cost:     500 iterations of 8 images; under 10 minutes.
Expected: AP 66.2 and 66.1, AP50 91.5 and 92.3 on the validation part with two seeds,
          results/demo_points.json. The learning rate is FCOS', not tuned.
"""

from ..common.baselines import focal_baseline
from .paa import dataloader, lr_multiplier, model, optimizer, train

focal_baseline(model)
train.output_dir = "output/demo_paa_focal"
