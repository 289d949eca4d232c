"""Sampling-free Cascade Mask R-CNN R50 on COCO, Detectron2's recipe (L1 box loss, 640-800 px; box
losses as means over the coordinates, see sampling_free/convert.py).

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/cascade_rcnn/cascade_mask_rcnn_R_50_FPN_1x.py
Hardware: 8 GPUs of 8 GB or more (4.0 GB each at 2 images, by Detectron2's model zoo).
Cost:     8 hours on V100, by Detectron2's model zoo (0.317 s an iteration of its own class).
Expected: not run by us. Detectron2's sampled baseline: 42.1 box AP, 36.4 mask AP (its model zoo).
"""

from detectron2 import model_zoo

from ..common.data import dataloader
from ..common.rcnn import rcnn

_base = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
optimizer = _base.optimizer
lr_multiplier = _base.lr_multiplier
train = _base.train

model = rcnn("cascade_rcnn")
model.backbone.bottom_up.freeze_at = 2
model.proposal_generator.post_nms_topk = (2000, 1000)  # of Detectron2's YAML config
dataloader.train.mapper.use_instance_mask = True
train.output_dir = "output/cascade_mask_rcnn_R_50_FPN_1x"
