"""Baseline: Detectron2's RetinaNet R50 with focal loss on COCO, the authors' recipe but for the
normalizer of the box loss, which is Detectron2's.

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/retinanet/retinanet_R_50_FPN_1x_authors_focal.py
Hardware: 8 GPUs of 8 GB or more (4.1 to 5.2 GB each at 2 images, by Detectron2's model zoo).
Cost:     5 hours on V100, by Detectron2's model zoo (0.205 s an iteration with focal loss).
Expected: not run by us. Published: 36.4 AP on val, 36.6 on test-dev, threshold 0.05.
"""

from ..common.baselines import focal_baseline
from .retinanet_R_50_FPN_1x_authors import dataloader, lr_multiplier, model, optimizer, train

focal_baseline(model)
train.output_dir = "output/retinanet_R_50_FPN_1x_authors_focal"
