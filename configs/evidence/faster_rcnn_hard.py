"""A thin Faster R-CNN on 80 synthetic classes, for docs/evidence.md.

Command:  python train_net.py --config-file configs/evidence/faster_rcnn_hard.py
Hardware: one CPU core.
Cost:     400 iterations of 4 small images; a minute or two.
Expected: docs/evidence.md, at the learning rate that was chosen there.
"""

from ..common.evidence import hard_dataloader as dataloader
from ..common.evidence import schedule
from ..common.rcnn import rcnn, without_masks
from ..common.small_rcnn import small_rcnn
from ..common.thin import thin

model = thin(small_rcnn(without_masks(rcnn("mask_rcnn_fpn"))))
model.roi_heads.num_classes = 80
lr_multiplier, optimizer, train = schedule("faster_rcnn_hard", max_iter=400)
