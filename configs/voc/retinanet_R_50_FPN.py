"""Sampling-free RetinaNet R50 on PASCAL VOC 07+12 as the authors had it: no P3, 14k iterations.

Command:  python train_net.py --config-file configs/voc/retinanet_R_50_FPN.py --num-gpus 8
Data:     $DETECTRON2_DATASETS/VOC2007 and VOC2012, as Detectron2's documentation has it.
Hardware: 8 GPUs of 8 GB or more.
Cost:     14,000 iterations of 16 images; not measured.
Expected: not run by us. Published: 80.1 AP50 on VOC07 test, focal loss 79.3; equal runs differ by
          up to 1.1, so that gain is inside the noise.
"""

from ..common.authors import authors_recipe
from ..common.voc import MAX_ITER, NUM_CLASSES, dataloader, lr_multiplier
from ..retinanet.retinanet_R_50_FPN_1x import model, optimizer, train

model.num_classes = NUM_CLASSES
# The objects are large: levels P4 to P7 only.
model.backbone.bottom_up.out_features = ["res4", "res5"]
model.backbone.in_features = ["res4", "res5"]
model.head_in_features = ["p4", "p5", "p6", "p7"]
model.head.input_shape = model.head.input_shape[1:]
model.anchor_generator.sizes = model.anchor_generator.sizes[1:]
model.anchor_generator.strides = model.anchor_generator.strides[1:]
authors_recipe(model, dataloader, optimizer)
train.max_iter = MAX_ITER
train.output_dir = "output/voc_retinanet_R_50_FPN"
