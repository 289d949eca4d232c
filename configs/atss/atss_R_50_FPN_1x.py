"""Sampling-free ATSS R50 on COCO, Detectron2's recipe (640-800 px).

Command:  python train_net.py --config-file configs/atss/atss_R_50_FPN_1x.py --num-gpus 8
Hardware: 8 GPUs of 8 GB or more; not measured.
Cost:     90,000 iterations of 16 images; not measured.
Expected: not run by us.
"""

from ..common.atss import model
from ..fcos.fcos_R_50_FPN_1x import dataloader, lr_multiplier, optimizer, train

model.backbone.bottom_up.freeze_at = 2
train.output_dir = "output/atss_R_50_FPN_1x"
