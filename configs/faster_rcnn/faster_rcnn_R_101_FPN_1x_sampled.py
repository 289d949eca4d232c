"""Baseline: Detectron2's Faster R-CNN R101 with biased sampling on COCO, Detectron2's recipe.

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/faster_rcnn/faster_rcnn_R_101_FPN_1x_sampled.py
Hardware: 8 GPUs of 8 GB or more (4.1 GB each at 2 images, by Detectron2's model zoo).
Cost:     7.2 hours on V100, by Detectron2's model zoo (0.286 s an iteration of its own class).
Expected: not run by us.
"""

from .faster_rcnn_R_50_FPN_1x_sampled import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
train.output_dir = "output/faster_rcnn_R_101_FPN_1x_sampled"
