"""Sampling-free RetinaNet R101 on COCO, Detectron2's recipe (L1 box loss, 640-800 px).

Command:  python train_net.py --config-file configs/retinanet/retinanet_R_101_FPN_1x.py --num-gpus 8
Hardware: 8 GPUs; Detectron2's focal baseline takes 0.291 s an iteration on V100, 7 hours.
Expected: not run by us.
"""

from .retinanet_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
train.output_dir = "output/retinanet_R_101_FPN_1x"
