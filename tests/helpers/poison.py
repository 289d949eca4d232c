"""A model whose loss is not finite when it is told so."""

import math

import torch
from detectron2.utils.events import EventStorage

from helpers.tiny_detectors import rcnn_batch
from sampling_free.engine.step import PrecisionTrainer

LR = 0.01


class Poison:
    """Spoils the training passes of a model in some of its calls.

    Args:
        how (str): "loss", a loss of NaN; "gradient", a NaN behind a finite loss; "proposals", an
            error after the pass, as Detectron2's RPN raises it.
        calls (set[int]): which, from 0 up.
    """

    def __init__(self, model, how, calls):
        self.forward, self.how, self.calls, self.count = model.forward, how, calls, -1
        self.parameter = [p for p in model.parameters() if p.requires_grad][0]
        model.forward = self

    def __call__(self, data):
        losses = self.forward(data)
        self.count += 1
        if self.count not in self.calls:
            return losses
        if self.how == "proposals":
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")
        zero = self.parameter.sum() * 0
        # The root of zero is zero, and its slope infinite.
        more = zero + math.nan if self.how == "loss" else zero.sqrt()
        return {**losses, "loss_spoilt": more}


HOWS = ["loss", "gradient", "proposals"]


def make(model, dtype=None, skip=0, cls=PrecisionTrainer, batches=None):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=0.9, weight_decay=1e-3)
    made = cls(model.train(), batches or [rcnn_batch(3, 2)] * 99, optimizer, "cpu", dtype, skip)
    made.iter = 0
    return made


def train(made, num):
    """Steps as Detectron2's loop does them; the storage afterwards."""
    with EventStorage() as storage:
        for made.iter in range(num):
            storage.iter = made.iter
            torch.manual_seed(made.iter)
            made.run_step()
    return storage
