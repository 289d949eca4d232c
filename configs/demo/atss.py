"""Quick run: sampling-free ATSS R18 on the embedded synthetic set, from random weights.

Command:  python train_net.py --config-file configs/demo/atss.py
Hardware: two CPU cores, or one.
"""

from ..common.demo import NUM_CLASSES, dataloader, demo_schedule
from ..common.small_atss import model

model.num_classes = NUM_CLASSES
lr_multiplier, optimizer, train = demo_schedule("output/demo_atss", lr=0.04, max_iter=500)
