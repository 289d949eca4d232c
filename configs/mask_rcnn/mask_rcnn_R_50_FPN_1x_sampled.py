"""Baseline: Detectron2's Mask R-CNN R50 with biased sampling on COCO, Detectron2's recipe.

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/mask_rcnn/mask_rcnn_R_50_FPN_1x_sampled.py
Hardware: 8 GPUs of 8 GB or more (3.4 GB each at 2 images, by Detectron2's model zoo).
Cost:     6.5 hours on V100, by Detectron2's model zoo (0.261 s an iteration of its own class).
Expected: not run by us. Detectron2's model zoo has 38.6 box AP and 35.2 mask AP, at threshold 0.05.
"""

from ..common.baselines import sampled_baseline
from .mask_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

sampled_baseline(model)
train.output_dir = "output/mask_rcnn_R_50_FPN_1x_sampled"
