"""Baseline: Detectron2's Faster R-CNN R50 with biased sampling on PASCAL VOC 07+12, the authors'
recipe but for the normalizers of the losses, which are Detectron2's.

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/voc/faster_rcnn_R_50_FPN_sampled.py
Hardware: 8 GPUs of 8 GB or more.
Cost:     14,000 iterations of 16 images; not measured.
Expected: not run by us. Published: 80.9 AP50 on VOC07 test.
"""

from ..common.baselines import sampled_baseline
from .faster_rcnn_R_50_FPN import dataloader, lr_multiplier, model, optimizer, train

sampled_baseline(model)
train.output_dir = "output/voc_faster_rcnn_R_50_FPN_sampled"
