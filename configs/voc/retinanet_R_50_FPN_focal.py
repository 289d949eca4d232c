"""Baseline: Detectron2's RetinaNet R50 with focal loss on PASCAL VOC 07+12, the authors' recipe but
for the normalizer of the box loss, which is Detectron2's.

Command:  python train_net.py --config-file configs/voc/retinanet_R_50_FPN_focal.py --num-gpus 8
Hardware: 8 GPUs of 8 GB or more.
Cost:     14,000 iterations of 16 images; not measured.
Expected: not run by us. Published: 79.3 AP50 on VOC07 test.
"""

from ..common.baselines import focal_baseline
from .retinanet_R_50_FPN import dataloader, lr_multiplier, model, optimizer, train

focal_baseline(model)
train.output_dir = "output/voc_retinanet_R_50_FPN_focal"
