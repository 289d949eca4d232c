"""Baseline: Detectron2's Mask R-CNN R50 with biased sampling on COCO, the authors' recipe but for
the normalizers of the losses, which are Detectron2's.

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/mask_rcnn/mask_rcnn_R_50_FPN_1x_authors_sampled.py
Hardware: 8 GPUs of 8 GB or more (3.4 GB each at 2 images, by Detectron2's model zoo).
Cost:     6.5 hours on V100, by Detectron2's model zoo (0.261 s an iteration of its own class).
Expected: not run by us. Published: 37.8 box AP on val, 38.0 on test-dev, 34.2 mask AP.
"""

from ..common.baselines import sampled_baseline
from .mask_rcnn_R_50_FPN_1x_authors import dataloader, lr_multiplier, model, optimizer, train

sampled_baseline(model)
train.output_dir = "output/mask_rcnn_R_50_FPN_1x_authors_sampled"
