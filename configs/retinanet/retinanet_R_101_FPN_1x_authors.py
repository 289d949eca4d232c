"""Sampling-free RetinaNet R101 on COCO, the authors' recipe (see common/authors.py).

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/retinanet/retinanet_R_101_FPN_1x_authors.py
Hardware: 8 GPUs of 8 GB or more (4.1 to 5.2 GB each at 2 images, by Detectron2's model zoo).
Cost:     7 hours on V100, by Detectron2's model zoo (0.291 s an iteration with focal loss).
Expected: not run by us. Published: 39.0 AP on val, 39.1 on test-dev; focal loss 38.5 / 38.8,
          evaluated with other thresholds, so not a matched comparison.
"""

from ..common.authors import authors_recipe
from .retinanet_R_101_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

authors_recipe(model, dataloader, optimizer)
train.output_dir = "output/retinanet_R_101_FPN_1x_authors"
