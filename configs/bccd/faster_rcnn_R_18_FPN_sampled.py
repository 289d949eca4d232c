"""Baseline on BCCD: Detectron2's Faster R-CNN with biased sampling; all else as in the full method.

Command:  python train_net.py --config-file configs/bccd/faster_rcnn_R_18_FPN_sampled.py
Hardware: one CPU core.
Cost:     400 iterations of 4 images; about 10 minutes.
Expected: not measured yet; the learning rate is not tuned.
"""

from ..common.baselines import sampled_baseline
from .faster_rcnn_R_18_FPN import dataloader, lr_multiplier, model, optimizer, train

sampled_baseline(model)
model.roi_heads.batch_size_per_image = 128  # of 300 proposals, as 512 of 1000 elsewhere
train.output_dir = "output/bccd_faster_rcnn_R_18_FPN_sampled"
