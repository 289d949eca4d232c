"""Quick run: sampling-free Cascade R-CNN R18 on the embedded synthetic set, from random weights.

Command:  python train_net.py --config-file configs/demo/cascade_rcnn.py
Hardware: two CPU cores, or one.
"""

from ..common.demo import NUM_CLASSES, dataloader, demo_schedule
from ..common.rcnn import rcnn, without_masks
from ..common.small_rcnn import small_rcnn

model = small_rcnn(without_masks(rcnn("cascade_rcnn")))
model.roi_heads.num_classes = NUM_CLASSES
lr_multiplier, optimizer, train = demo_schedule("output/demo_cascade_rcnn", lr=0.01, max_iter=300)
