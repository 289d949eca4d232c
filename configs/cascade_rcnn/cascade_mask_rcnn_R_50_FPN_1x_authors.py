"""Sampling-free Cascade Mask R-CNN R50 on COCO, the authors' recipe (see common/authors.py).

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/cascade_rcnn/cascade_mask_rcnn_R_50_FPN_1x_authors.py
Hardware: 8 GPUs of 8 GB or more (4.0 GB each at 2 images, by Detectron2's model zoo).
Cost:     8 hours on V100, by Detectron2's model zoo (0.317 s an iteration of its own class).
Expected: not run by us. Notes on the paper of 2019 say that Cascade gains about 1 AP.
"""

from ..common.authors import authors_recipe
from .cascade_mask_rcnn_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

authors_recipe(model, dataloader, optimizer)
train.output_dir = "output/cascade_mask_rcnn_R_50_FPN_1x_authors"
