"""FCOS: what is Detectron2's, and its settings."""

import math

import pytest
import torch
from torch import nn

from helpers.tiny import WIDTH, batch
from helpers.tiny_detectors import stock_fcos, tiny_fcos
from sampling_free import SamplingFreeFCOS
from sampling_free.utils.errors import BadInput


@pytest.mark.parametrize("radius", [1.5, math.inf])
def test_labels_and_boxes_are_those_of_stock(radius):
    inputs = batch(4, 0, 6, size=(96, 128))
    ours = tiny_fcos(center_sampling_radius=radius)
    stock = stock_fcos(center_sampling_radius=radius)
    with torch.no_grad():
        features = ours.backbone(ours.preprocess_image(inputs).tensor)
    features = [features[f] for f in ours.head_in_features]
    results = [
        m.label_anchors(m.anchor_generator(features), [i["instances"] for i in inputs])
        for m in (ours, stock)
    ]
    assert (torch.stack(results[1][0]) < 3).sum() > 10
    for a, b in zip(results[0][0], results[1][0]):
        assert torch.equal(a, b)
    for a, b in zip(results[0][1], results[1][1]):
        assert torch.equal(getattr(a, "tensor", a), getattr(b, "tensor", b))


@pytest.mark.parametrize("box_weight", ["centreness", None])
def test_an_unknown_box_weight_is_refused_with_those_known(box_weight):
    with pytest.raises(BadInput, match="model.box_weight=.*uniform.*centerness"):
        tiny_fcos(prior=0.01, box_weight=box_weight)


def test_a_head_without_bias_is_refused_by_its_layer():
    class WithoutBias(SamplingFreeFCOS):
        def __init__(self, *, head, **kwargs):
            head.cls_score = nn.Conv2d(WIDTH, 3, 3, padding=1, bias=False)
            super().__init__(head=head, **kwargs)

    with pytest.raises(BadInput, match="FCOSHead has no parameter cls_score.bias"):
        tiny_fcos(WithoutBias, prior="auto")
