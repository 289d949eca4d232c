"""Sampling-free Faster R-CNN R18 on BCCD from random weights: the full method in both stages.

Command:  python train_net.py --config-file configs/bccd/faster_rcnn_R_18_FPN.py
Data:     see "BCCD" in the README.
Hardware: one CPU core.
Cost:     400 iterations of 4 images; about 10 minutes.
Expected: not measured yet; the learning rate is not tuned.
"""

from ..common.bccd import bccd_schedule, dataloader
from ..common.rcnn import rcnn, without_masks
from ..common.small_rcnn import small_rcnn

model = small_rcnn(without_masks(rcnn("mask_rcnn_fpn")))
model.roi_heads.num_classes = 3
lr_multiplier, optimizer, train = bccd_schedule("faster_rcnn_R_18_FPN", lr=0.01)
