"""Baseline: Detectron2's Faster R-CNN R101 with biased sampling on COCO, the authors' recipe but
for the normalizers of the losses, which are Detectron2's.

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/faster_rcnn/faster_rcnn_R_101_FPN_1x_authors_sampled.py
Hardware: 8 GPUs of 8 GB or more (4.1 GB each at 2 images, by Detectron2's model zoo).
Cost:     7.2 hours on V100, by Detectron2's model zoo (0.286 s an iteration of its own class).
Expected: not run by us. Published: 39.1 AP on val, 39.3 on test-dev.
"""

from .faster_rcnn_R_50_FPN_1x_authors_sampled import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.stages.depth = 101
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
train.output_dir = "output/faster_rcnn_R_101_FPN_1x_authors_sampled"
