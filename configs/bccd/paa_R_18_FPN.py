"""Sampling-free PAA R18 on BCCD from random weights: the full method.

Command:  python train_net.py --config-file configs/bccd/paa_R_18_FPN.py
Data:     see "BCCD" in the README.
Hardware: one CPU core.
Cost:     400 iterations of 4 images; not measured.
Expected: not run by us; the learning rate is that of ATSS.
"""

from ..common.bccd import bccd_schedule, dataloader
from ..common.small_paa import model

model.num_classes = 3
lr_multiplier, optimizer, train = bccd_schedule("paa_R_18_FPN", lr=0.04)
