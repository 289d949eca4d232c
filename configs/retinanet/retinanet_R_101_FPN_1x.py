"""Sampling-free RetinaNet R101 on COCO, Detectron2's recipe (L1 box loss, 640-800 px).

Command:  python train_net.py --config-file configs/retinanet/retinanet_R_101_FPN_1x.py --num-gpus 8
Hardware: 8 GPUs of 8 GB or more (4.1 to 5.2 GB each at 2 images, by Detectron2's model zoo).
Cost:     7 hours on V100, by Detectron2's model zoo (0.291 s an iteration with focal loss).
Expected: not run by us.
"""

from .retinanet_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages.depth = 101
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
train.output_dir = "output/retinanet_R_101_FPN_1x"
