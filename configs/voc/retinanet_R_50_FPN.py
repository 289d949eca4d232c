"""Sampling-free RetinaNet R50 on PASCAL VOC 07+12 as the authors had it: no P3, 14k iterations.

Command:  python train_net.py --config-file configs/voc/retinanet_R_50_FPN.py --num-gpus 8
Data:     $DETECTRON2_DATASETS/VOC2007 and VOC2012, as Detectron2's documentation has it.
Hardware: 8 GPUs of 8 GB or more.
Cost:     14,000 iterations of 16 images; not measured.
Expected: not run by us. Published: 80.1 AP50 on VOC07 test, focal loss 79.3; equal runs differ by
          up to 1.1, so that gain is inside the noise.
"""

from detectron2.config import LazyCall as L
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from ..common.authors import authors_recipe
from ..retinanet.retinanet_R_50_FPN_1x import dataloader, model, optimizer, train

dataloader.train.dataset.names = ["voc_2007_trainval", "voc_2012_trainval"]
dataloader.test.dataset.names = "voc_2007_test"
dataloader.evaluator = L(PascalVOCDetectionEvaluator)(dataset_name="${..test.dataset.names}")

model.num_classes = 20
# The objects are large: levels P4 to P7 only.
model.backbone.bottom_up.out_features = ["res4", "res5"]
model.backbone.in_features = ["res4", "res5"]
model.head_in_features = ["p4", "p5", "p6", "p7"]
model.head.input_shape = model.head.input_shape[1:]
model.anchor_generator.sizes = model.anchor_generator.sizes[1:]
model.anchor_generator.strides = model.anchor_generator.strides[1:]
authors_recipe(model, dataloader, optimizer)

# The schedule is that of the authors' code of 2019, with the warm-up of maskrcnn-benchmark.
train.max_iter = 14000
train.output_dir = "output/voc_retinanet_R_50_FPN"
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[11000], num_updates=14000),
    warmup_length=500 / 14000,
    warmup_method="linear",
    warmup_factor=1 / 3,
)
