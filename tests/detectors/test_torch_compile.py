"""torch.compile gives the losses and gradients of the detector as it is."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from helpers.tiny import batch, tiny_retinanet
from helpers.tiny_detectors import tiny_fcos, tiny_rcnn
from sampling_free.method.guides import FROZEN, GRADIENT, ITERATION

DETECTORS = {
    "RetinaNet": lambda guide: tiny_retinanet(prior=0.01, guide=guide),
    "FCOS": lambda guide: tiny_fcos(prior=0.01, guide=guide),
    "Faster R-CNN": lambda guide: tiny_rcnn(
        rpn={"prior": 0.01, "guide": guide}, predictor={"guide": guide}
    ),
}


def losses_and_gradients(model, forward):
    model.train().zero_grad(set_to_none=True)
    torch.manual_seed(0)
    with EventStorage():
        losses = forward(batch(3, 2))
    sum(losses.values()).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in losses.items()}, gradients


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "detector",
    [x if x == "RetinaNet" else pytest.param(x, marks=pytest.mark.long) for x in DETECTORS],
)
@pytest.mark.parametrize(
    "guide",
    [GRADIENT, *(pytest.param(x, marks=pytest.mark.long) for x in (ITERATION, FROZEN, 0.5))],
)
def test_losses_and_gradients_are_those_without_it(detector, guide):
    model = DETECTORS[detector](guide)
    torch.compiler.reset()
    # The graphs and their backward passes as for every backend; no C++ compiler is needed.
    compiled = torch.compile(model, backend="aot_eager")
    expected, found = (losses_and_gradients(model, x) for x in (model, compiled))
    torch.compiler.reset()
    for a, b in zip(found, expected):
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], msg=name)
