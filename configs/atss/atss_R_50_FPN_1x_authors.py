"""Sampling-free ATSS R50 on COCO, the authors' recipe (see common/authors.py).

Command:  python train_net.py --config-file configs/atss/atss_R_50_FPN_1x_authors.py --num-gpus 8
Hardware: 8 GPUs of 8 GB or more; not measured.
Cost:     90,000 iterations of 16 images; not measured.
Expected: not run by us.
"""

from ..common.authors import authors_recipe
from .atss_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

authors_recipe(model, dataloader, optimizer)
train.output_dir = "output/atss_R_50_FPN_1x_authors"
