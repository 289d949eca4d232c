"""FCOS: what is Detectron2's, and its settings."""

import math

import pytest
import torch
from torch import nn

from helpers.fcos_cases import lively
from helpers.tiny import WIDTH, batch, train_step
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


@pytest.mark.parametrize("num_classes", [1, 3])
def test_detections_are_bit_equal_to_stock(num_classes):
    settings = {"test_score_thresh": 0.05, "test_nms_thresh": 0.5, "num_classes": num_classes}
    ours, stock = tiny_fcos(seed=1, **settings), stock_fcos(seed=2, **settings)
    stock.load_state_dict(lively(ours).state_dict())
    inputs = batch(2, 1, 0)
    inputs[1].update(height=50, width=200)
    with torch.no_grad():
        for a, b in zip(ours.eval()(inputs), stock.eval()(inputs)):
            a, b = a["instances"], b["instances"]
            assert a.image_size == b.image_size and len(a) == len(b) > 5
            assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
            assert torch.equal(a.scores, b.scores)
            assert torch.equal(a.pred_classes, b.pred_classes)


@pytest.mark.parametrize("norm", ["", "FrozenBN"])
def test_state_dicts_go_both_ways(norm):
    ours, stock = tiny_fcos(prior=0.01, seed=1, norm=norm), stock_fcos(seed=2, norm=norm)
    assert list(ours.state_dict()) == list(stock.state_dict())
    assert any("cls_subnet.1" in k for k in ours.state_dict()) == bool(norm)
    stock.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(stock.head.cls_score.bias, ours.head.cls_score.bias)
    other = stock_fcos(seed=3, norm=norm)
    assert not ours.head_was_loaded
    ours.load_state_dict(other.state_dict(), strict=True)
    assert ours.head_was_loaded
    for key, value in other.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)


def test_a_given_prior_is_the_start_score():
    model = tiny_fcos(prior="1e-5")
    assert model.head.cls_score.bias.sigmoid().tolist() == pytest.approx([1e-5] * 3, rel=1e-5)
    assert model.prior == 1e-5


@pytest.mark.parametrize("prior", ["automatic", 0, 1.0, None])
def test_an_impossible_prior_is_refused(prior):
    with pytest.raises(BadInput, match="model.prior=.*'auto'"):
        tiny_fcos(prior=prior)


@pytest.mark.parametrize("guide", ["epoch", -1, math.nan, None])
def test_an_unknown_guide_is_refused(guide):
    with pytest.raises(BadInput, match="model.guide=.*'iteration'"):
        tiny_fcos(prior=0.01, guide=guide)


@pytest.mark.parametrize("box_weight", ["centreness", None, 1])
def test_an_unknown_box_weight_is_refused_with_those_known(box_weight):
    with pytest.raises(BadInput, match="model.box_weight=.*uniform.*centerness"):
        tiny_fcos(prior=0.01, box_weight=box_weight)


def test_auto_refuses_to_train_and_still_detects():
    model = tiny_fcos(test_score_thresh=0.05)
    with pytest.raises(BadInput, match="model.prior is still 'auto'"):
        train_step(model, batch(1))
    with torch.no_grad():
        assert len(model.eval()(batch(1))[0]["instances"]) > 0


@pytest.mark.parametrize("prior", ["auto", 0.01])
def test_a_head_without_bias_is_refused_by_its_layer(prior):
    class WithoutBias(SamplingFreeFCOS):
        def __init__(self, *, head, **kwargs):
            head.cls_score = nn.Conv2d(WIDTH, 3, 3, padding=1, bias=False)
            super().__init__(head=head, **kwargs)

    with pytest.raises(BadInput, match="FCOSHead has no parameter cls_score.bias"):
        tiny_fcos(WithoutBias, prior=prior)
