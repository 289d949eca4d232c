"""Sampling-free Faster R-CNN R50 on COCO, the authors' recipe (see common/authors.py).

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/faster_rcnn/faster_rcnn_R_50_FPN_1x_authors.py
Hardware: 8 GPUs of 8 GB or more (3.0 GB each at 2 images, by Detectron2's model zoo).
Cost:     5.3 hours on V100, by Detectron2's model zoo (0.21 s an iteration of its own class).
Expected: not run by us. Published: 38.4 AP on val, 38.6 on test-dev; sampled 36.8 / 37.2.
"""

from ..common.authors import authors_recipe
from .faster_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

authors_recipe(model, dataloader, optimizer)
train.output_dir = "output/faster_rcnn_R_50_FPN_1x_authors"
