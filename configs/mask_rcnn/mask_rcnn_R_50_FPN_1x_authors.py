"""Sampling-free Mask R-CNN R50 on COCO, the authors' recipe (see common/authors.py).

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/mask_rcnn/mask_rcnn_R_50_FPN_1x_authors.py
Hardware: 8 GPUs of 8 GB or more (3.4 GB each at 2 images, by Detectron2's model zoo).
Cost:     6.5 hours on V100, by Detectron2's model zoo (0.261 s an iteration of its own class).
Expected: not run by us. Published: 39.0 box AP on val, 39.2 on test-dev, 34.9 mask AP;
          sampled 37.8, 38.0 and 34.2.
"""

from ..common.authors import authors_recipe
from .mask_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

authors_recipe(model, dataloader, optimizer)
train.output_dir = "output/mask_rcnn_R_50_FPN_1x_authors"
