"""A thin ATSS on BCCD, for docs/evidence.md.

Command:  python train_net.py --config-file configs/evidence/atss_bccd.py
Hardware: one CPU core.
Cost:     200 iterations of 2 small images; half a minute.
Expected: docs/evidence.md, at the learning rate that was chosen there.
"""

from ..common.evidence import bccd_dataloader as dataloader
from ..common.evidence import schedule
from ..common.small_atss import model
from ..common.thin import thin

thin(model)
model.num_classes = 3
lr_multiplier, optimizer, train = schedule("atss_bccd", max_iter=200)
