"""A thin FCOS on 80 synthetic classes, for docs/evidence.md.

Command:  python train_net.py --config-file configs/evidence/fcos_hard.py
Hardware: one CPU core.
Cost:     400 iterations of 4 small images; under a minute.
Expected: docs/evidence.md, at the learning rate that was chosen there.
"""

from ..common.evidence import hard_dataloader as dataloader
from ..common.evidence import schedule
from ..common.small_fcos import model
from ..common.thin import thin

thin(model)
model.num_classes = 80
lr_multiplier, optimizer, train = schedule("fcos_hard", max_iter=400)
