"""PASCAL VOC 07+12 as the authors had it: 14,000 iterations of 16 images, tested on VOC07."""

from detectron2.config import LazyCall as L
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from .data import dataloader

NUM_CLASSES = 20

dataloader.train.dataset.names = ["voc_2007_trainval", "voc_2012_trainval"]
dataloader.test.dataset.names = "voc_2007_test"
dataloader.evaluator = L(PascalVOCDetectionEvaluator)(dataset_name="${..test.dataset.names}")

# The schedule is that of the authors' code of 2019, with the warm-up of maskrcnn-benchmark.
MAX_ITER = 14000
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1], milestones=[11000], num_updates=MAX_ITER
    ),
    warmup_length=500 / MAX_ITER,
    warmup_method="linear",
    warmup_factor=1 / 3,
)
