"""Sampling-free Cascade R-CNN R50 on COCO, Detectron2's recipe (L1 box loss, 640-800 px; box losses
as means over the coordinates, see sampling_free/convert.py).

Command:  python train_net.py --num-gpus 8 \
              --config-file configs/cascade_rcnn/cascade_rcnn_R_50_FPN_1x.py
Hardware: 8 GPUs of 8 GB or more; not measured.
Cost:     90,000 iterations of 16 images; not measured.
Expected: not run by us.
"""

from detectron2 import model_zoo

from ..common.data import dataloader
from ..common.rcnn import rcnn, without_masks

_base = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
optimizer = _base.optimizer
lr_multiplier = _base.lr_multiplier
train = _base.train

model = without_masks(rcnn("cascade_rcnn"))
model.backbone.bottom_up.freeze_at = 2
model.proposal_generator.post_nms_topk = (2000, 1000)  # of Detectron2's YAML config
train.output_dir = "output/cascade_rcnn_R_50_FPN_1x"
