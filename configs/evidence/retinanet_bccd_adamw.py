"""As retinanet_bccd.py, with AdamW, which divides each gradient by its own size.

Command:  python train_net.py --config-file configs/evidence/retinanet_bccd_adamw.py
Hardware: one CPU core.
Cost:     as retinanet_bccd.py.
Expected: docs/evidence.md, at the learning rate that was chosen there.
"""

from torch.optim import AdamW

from .retinanet_bccd import dataloader, lr_multiplier, model, optimizer, train

optimizer._target_ = AdamW
optimizer.pop("momentum")
optimizer.update(lr=0.001, weight_decay=0.1)  # as in Detectron2's common/optim.py
train.output_dir = "output/evidence_retinanet_bccd_adamw"
