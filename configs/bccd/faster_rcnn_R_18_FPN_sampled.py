"""Baseline on BCCD: Detectron2's Faster R-CNN with biased sampling; all else as in the full method.

Command:  python train_net.py --config-file configs/bccd/faster_rcnn_R_18_FPN_sampled.py
Hardware: one CPU core.
"""

from ..common.baselines import sampled_baseline
from .faster_rcnn_R_18_FPN import dataloader, lr_multiplier, model, optimizer, train

sampled_baseline(model)
train.output_dir = "output/bccd_faster_rcnn_R_18_FPN_sampled"
