"""Quick run: sampling-free PAA R18 on the embedded synthetic set, from random weights.

Command:  python train_net.py --config-file configs/demo/paa.py
Hardware: two CPU cores, or one.
Cost:     500 iterations of 8 images; under 10 minutes.
Expected: AP 66.6 and 66.4, AP50 93.7 and 94.5 on the validation part with two seeds,
          results/demo_points.json. The learning rate is FCOS', not tuned.
"""

from ..common.demo import NUM_CLASSES, dataloader, demo_schedule
from ..common.small_paa import model

model.num_classes = NUM_CLASSES
lr_multiplier, optimizer, train = demo_schedule("output/demo_paa", lr=0.04, max_iter=500)
