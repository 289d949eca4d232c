"""Baseline: Detectron2's Cascade Mask R-CNN R50 with biased sampling on COCO, the authors' recipe
but for the normalizers of the losses, which are Detectron2's.

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/cascade_rcnn/cascade_mask_rcnn_R_50_FPN_1x_authors_sampled.py
Hardware: 8 GPUs of 8 GB or more (4.0 GB each at 2 images, by Detectron2's model zoo).
Cost:     8 hours on V100, by Detectron2's model zoo (0.317 s an iteration of its own class).
Expected: not run by us.
"""

from ..common.baselines import sampled_baseline
from .cascade_mask_rcnn_R_50_FPN_1x_authors import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

sampled_baseline(model)
train.output_dir = "output/cascade_mask_rcnn_R_50_FPN_1x_authors_sampled"
