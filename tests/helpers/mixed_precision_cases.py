"""Detectors in mixed precision."""

import pytest
import torch
from detectron2.modeling import ProposalNetwork
from detectron2.utils.events import EventStorage

from helpers.half_products import half_products
from helpers.precision_runs import DEVICE
from helpers.tiny import tiny_retinanet
from helpers.tiny_detectors import PIXELS, ROI_HEADS, rcnn_batch, tiny_fcos, tiny_rcnn
from sampling_free import (
    SamplingFreeATSS,
    SamplingFreePAA,
)
from sampling_free.config.load import DTYPES
from sampling_free.engine.step import PrecisionTrainer

PRIOR = 1e-7


def _rpn_alone(**kwargs):
    model = tiny_rcnn(**kwargs)
    return ProposalNetwork(
        backbone=model.backbone, proposal_generator=model.proposal_generator, **PIXELS
    )


def rcnn(kind, **rpn):
    return tiny_rcnn(kind, rpn={"prior": PRIOR, **rpn}, predictor={"softmax_prior": PRIOR})


DENSE = {
    "retinanet": lambda: tiny_retinanet(prior=PRIOR),
    "fcos": lambda: tiny_fcos(prior=PRIOR),
    "atss": lambda: tiny_fcos(SamplingFreeATSS, prior=PRIOR),
    "paa": lambda: tiny_fcos(SamplingFreePAA, prior=PRIOR),
    "rpn": lambda: _rpn_alone(rpn={"prior": PRIOR}),
}


DETECTORS = DENSE | {kind: lambda kind=kind: rcnn(kind) for kind in ROI_HEADS}


each_dtype = pytest.mark.parametrize("dtype", DTYPES)


each_detector = pytest.mark.parametrize("name", DETECTORS)


def inputs(name, *nums):
    return rcnn_batch(*nums, kind=name)


def train(model, dtype, batches, rate=0.0):
    """The trainer after a step on each batch, and the numbers that the last one logged."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=rate, momentum=0.9)
    trainer = PrecisionTrainer(model, batches, optimizer, DEVICE, dtype)
    with EventStorage() as storage, half_products(DEVICE, dtype):
        for trainer.iter in range(len(batches)):
            trainer.run_step()
    return trainer, {k: v for k, (v, _) in storage.latest().items()}
