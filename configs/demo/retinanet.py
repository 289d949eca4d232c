"""The demo: sampling-free RetinaNet R18 on the embedded synthetic set, from random weights.

Command:  make demo   (or: python train_net.py --config-file configs/demo/retinanet.py)
Hardware: two CPU cores, or one.
Cost:     700 iterations of 8 images; under 8 minutes.
Expected: AP50 of about 92 on the validation part: 91.7 to 93.3 over three seeds with one thread,
          results/demo.json. Two threads round otherwise.
"""

from ..common.demo import NUM_CLASSES, dataloader, demo_schedule
from ..common.small_retinanet import model

model.num_classes = NUM_CLASSES
lr_multiplier, optimizer, train = demo_schedule("output/demo", lr=0.04)
