"""Baseline: Detectron2's Faster R-CNN R50 with biased sampling on COCO, the authors' recipe but for
the normalizers of the losses, which are Detectron2's.

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/faster_rcnn/faster_rcnn_R_50_FPN_1x_authors_sampled.py
Hardware: 8 GPUs of 8 GB or more (3.0 GB each at 2 images, by Detectron2's model zoo).
Cost:     5.3 hours on V100, by Detectron2's model zoo (0.21 s an iteration of its own class).
Expected: not run by us. Published: 36.8 AP on val, 37.2 on test-dev.
"""

from ..common.baselines import sampled_baseline
from .faster_rcnn_R_50_FPN_1x_authors import dataloader, lr_multiplier, model, optimizer, train

sampled_baseline(model)
train.output_dir = "output/faster_rcnn_R_50_FPN_1x_authors_sampled"
