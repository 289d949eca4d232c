"""Quick run: sampling-free Faster R-CNN R18 on the embedded synthetic set, from random weights.

Command:  python train_net.py --config-file configs/demo/faster_rcnn.py
Hardware: two CPU cores, or one.
Cost:     300 iterations of 8 images; under 8 minutes.
Expected: AP50 95.2 and 96.0 on the validation part with two seeds,
          results/demo_detectors.json.
"""

from ..common.demo import NUM_CLASSES, dataloader, demo_schedule
from ..common.rcnn import rcnn, without_masks
from ..common.small_rcnn import small_rcnn

model = small_rcnn(without_masks(rcnn("mask_rcnn_fpn")))
model.roi_heads.num_classes = NUM_CLASSES
lr_multiplier, optimizer, train = demo_schedule("output/demo_faster_rcnn", lr=0.01, max_iter=300)
