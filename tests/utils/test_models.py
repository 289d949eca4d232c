"""A forward pass leaves no trace: generators, buffers, plain attributes, gradients, storage."""

import math
import random
from itertools import cycle

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from helpers.guided_detectors import KINDS, STOCK, detector, inputs_of
from helpers.probed import BASELINES
from helpers.tiny import stock_retinanet
from helpers.tiny_detectors import rcnn_batch, tiny_fcos, tiny_rcnn
from sampling_free.diagnosis.gradients import measure
from sampling_free.utils.models import preserved


def generators():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def plain(model):
    """Attributes of every module that are no tensors, and those of its log."""
    owners = {}
    for name, module in model.named_modules():
        owners[name] = module
        if hasattr(module, "guide_log"):
            owners[f"{name}.log"] = module.guide_log
    kinds = (bool, int, float, str, type(None))
    return {
        (name, k): v
        for name, owner in owners.items()
        for k, v in vars(owner).items()
        if isinstance(v, kinds)
    }


def state(model):
    """Everything that a training step goes on from."""
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    tensors.update({f"buffer {k}": v.clone() for k, v in model.named_buffers()})
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    tensors.update({f"grad {k}": g.clone() for k, g in gradients.items()})
    return tensors, plain(model), generators()


def assert_same(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    for key, value in before[0].items():
        assert torch.equal(value, after[0][key]), key


class Restless(nn.Module):
    """Changes everything that a module can, in every pass."""

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(3), nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("changed", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("absent", None)
        self.register_buffer("passing", torch.zeros(2), persistent=False)
        self.running, self.count, self.flag, self.word = 1.5, 0, False, "a"
        self.cache = None
        self.norm.bare = nn.Identity()  # no buffer of its own before the pass

    def forward(self, x):
        self.changed += 1
        self.replaced = self.replaced + 1
        self.absent = torch.ones(2)
        self.passing.fill_(math.nan)
        self.running, self.count, self.flag, self.word = 2.5, self.count + 1, True, "b"
        self.cache, self.made = torch.ones(2), 7
        if "late" not in dict(self.norm.bare.named_buffers()):
            self.norm.bare.register_buffer("late", torch.ones(1))
        random.random(), np.random.rand()
        return (self.drop(self.norm(x)) * self.weight).sum()


def test_whatever_a_pass_changes_is_put_back():
    model, x = Restless().train(), torch.randn(4, 3, 5, 5)
    buffers = dict(model.named_buffers())
    before = state(model)
    with preserved(model):
        model(x)
        assert model.norm.num_batches_tracked == 1 and model.count == 1
        assert generators() != before[2]
    assert_same(before, state(model))
    after = dict(model.named_buffers())
    assert after.keys() == buffers.keys() and all(after[k] is v for k, v in buffers.items())
    assert not hasattr(model, "made") and model.cache is None and model.absent is None
    assert not hasattr(model.norm.bare, "late")


def test_the_pass_after_it_is_the_one_that_would_have_been():
    x, outputs = torch.randn(4, 3, 5, 5), []
    for looks in (False, True):
        torch.manual_seed(0)
        model = Restless().train()
        for _ in range(3):
            if looks:
                with preserved(model):
                    model(x), model(x)
            outputs.append(model(x).item())
    assert outputs[:3] == outputs[3:] and len(set(outputs)) == 3


CASES = {f"stock {k}": (k, make) for k, make in STOCK.items()}
for _kind, _guide in zip(KINDS, cycle(["frozen", "gradient"])):
    CASES[f"{_kind} {_guide}"] = _kind, lambda kind=_kind, guide=_guide: detector(kind, guide)
CASES["stock mask"] = "mask", lambda: tiny_rcnn("mask", stock=True)
CASES |= BASELINES
CASES["batch norm in the head"] = "fcos", lambda: tiny_fcos(prior=0.01, norm="BN")


@pytest.mark.parametrize("case", CASES)
def test_measuring_leaves_a_detector_as_it_was(case):
    kind, make = CASES[case]
    model, inputs = make().train(), inputs_of(kind, 3, 2)
    with EventStorage(5) as storage:
        sum(model(inputs).values()).backward()  # there are gradients and running numbers
        before, numbers = state(model), dict(storage.latest())
        first = measure(model, inputs, with_parts=True)
        assert_same(before, state(model))
        assert storage.latest() == numbers and storage.iter == 5
        assert measure(model, inputs, with_parts=True) == first  # also the samplers draw the same
    assert model.training and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("case", ["retinanet frozen", "stock mask"])
def test_an_exception_within_leaves_the_detector_whole(case, monkeypatch):
    kind, make = CASES[case]
    model, inputs = make().train(), inputs_of(kind, 3, 2)
    with EventStorage(5) as storage:
        model(inputs)
        before = state(model)
        numbers = dict(storage.latest())
        monkeypatch.setattr("sampling_free.diagnosis.gradients.score_histograms", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measure(model, inputs)
        assert_same(before, state(model))
        assert storage.latest() == numbers
    assert not any({"losses", "forward"} & vars(m).keys() for m in model.modules())
    assert torch.is_grad_enabled() and torch._C._get_graph_executor_optimize()


@pytest.mark.parametrize("make, period", [(stock_retinanet, 1), (lambda: tiny_rcnn(stock=True), 5)])
def test_no_picture_gets_into_the_storage(make, period):
    model, inputs = make().train(), rcnn_batch(3, 2)
    model.vis_period, model.input_format = period, "BGR"
    with EventStorage(5) as storage:
        before = state(model)
        measure(model, inputs)
        assert_same(before, state(model))
        assert storage._vis_data == []
