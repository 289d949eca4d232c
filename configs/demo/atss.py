"""Quick run: sampling-free ATSS R18 on the embedded synthetic set, from random weights.

Command:  python train_net.py --config-file configs/demo/atss.py
Hardware: two CPU cores, or one.
Cost:     500 iterations of 8 images; under 8 minutes.
Expected: AP 67.9 and 66.2, AP50 92.3 and 91.1 on the validation part with two seeds,
          results/demo_points.json. The learning rate is FCOS', not tuned.
"""

from ..common.demo import NUM_CLASSES, dataloader, demo_schedule
from ..common.small_atss import model

model.num_classes = NUM_CLASSES
lr_multiplier, optimizer, train = demo_schedule("output/demo_atss", lr=0.04, max_iter=500)
