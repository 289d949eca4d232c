"""Quick run: sampling-free Mask R-CNN R18 on the embedded synthetic set, from random weights.

Command:  python train_net.py --config-file configs/demo/mask_rcnn.py
Hardware: two CPU cores, or one.
Cost:     300 iterations of 8 images; under 10 minutes.
Expected: AP50 95.5 and 95.9 on the validation part with two seeds; mask AP 44.9 and 48.4,
          results/demo_detectors.json.
"""

from ..common.demo import NUM_CLASSES, dataloader, demo_schedule
from ..common.rcnn import rcnn
from ..common.small_rcnn import small_rcnn

model = small_rcnn(rcnn("mask_rcnn_fpn"))
model.roi_heads.num_classes = NUM_CLASSES
dataloader.train.mapper.use_instance_mask = True
lr_multiplier, optimizer, train = demo_schedule("output/demo_mask_rcnn", lr=0.01, max_iter=300)
