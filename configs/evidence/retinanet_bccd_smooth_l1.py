"""As retinanet_bccd.py, with the box loss of the authors: smooth L1, a mean over the coordinates.

Command:  python train_net.py --config-file configs/evidence/retinanet_bccd_smooth_l1.py
Hardware: one CPU core.
Cost:     as retinanet_bccd.py.
Expected: docs/evidence.md, at the learning rate that was chosen there.
"""

from .retinanet_bccd import dataloader, lr_multiplier, model, optimizer, train

model.smooth_l1_beta = 0.11
model.box_reg_loss_weight = 0.25
train.output_dir = "output/evidence_retinanet_bccd_smooth_l1"
