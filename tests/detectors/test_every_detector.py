"""What holds for every detector: Detectron2's weights and detections, empty images, the prior."""

from itertools import cycle

import pytest
import torch

from helpers.guided_detectors import GUIDES, KINDS, STOCK, detector, inputs_of
from helpers.proposals import assert_same_detections
from helpers.tiny import batch, tiny_retinanet, train_step
from helpers.tiny_detectors import ROI_HEADS, tiny_fcos, tiny_rcnn
from sampling_free import BadInput, SamplingFreeATSS, SamplingFreePAA
from sampling_free.detectors.bias import ClassifierBias

WITH_PRIOR = {
    "retinanet": tiny_retinanet,
    "fcos": tiny_fcos,
    "atss": lambda **kwargs: tiny_fcos(SamplingFreeATSS, **kwargs),
    "paa": lambda **kwargs: tiny_fcos(SamplingFreePAA, **kwargs),
    "rpn": lambda **kwargs: tiny_rcnn(rpn=kwargs),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_with_prior = pytest.mark.parametrize("kind", WITH_PRIOR)


def stock_of(kind, **kwargs):
    return STOCK[kind]() if kind in STOCK else tiny_rcnn(kind, stock=True, seed=2, **kwargs)


def head_with_prior(model):
    return getattr(model, "proposal_generator", model)


@each_kind
def test_state_dicts_go_both_ways(kind):
    ours, stock = detector(kind, "gradient"), stock_of(kind)
    weights = {k: v.clone() for k, v in stock.state_dict().items()}
    assert list(ours.state_dict()) == list(weights)
    stock.load_state_dict(ours.state_dict(), strict=True)
    for key, value in stock.state_dict().items():
        assert torch.equal(value, ours.state_dict()[key]), key
    head = head_with_prior(ours)
    assert isinstance(head, ClassifierBias) and not head.head_was_loaded
    ours.load_state_dict(weights, strict=True)
    assert head.head_was_loaded
    for key, value in weights.items():
        assert torch.equal(value, ours.state_dict()[key]), key


@pytest.mark.parametrize("kind, agnostic", [*zip(KINDS, cycle([False])), ("faster", True)])
def test_detections_are_bit_equal_to_stock(kind, agnostic):
    kwargs = {"agnostic": agnostic} if kind in ROI_HEADS else {}
    ours, stock = detector(kind, "gradient", **kwargs), stock_of(kind, **kwargs)
    if kind in ROI_HEADS:
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():  # scores and boxes that differ from one another
            for name, p in ours.roi_heads.named_parameters():
                if name.endswith(("cls_score.weight", "bbox_pred.weight")):
                    p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    else:
        ours.test_score_thresh = stock.test_score_thresh = 0.008
    inputs = batch(2, 1)
    inputs[1].update(height=50, width=200)
    assert_same_detections(ours, stock, inputs)


@pytest.mark.parametrize(
    "kind, guide", [*zip(KINDS, cycle(GUIDES)), *zip(cycle(KINDS[:1]), GUIDES)]
)
def test_a_batch_without_objects_gives_connected_zeros(kind, guide):
    losses, latest, gradients = train_step(detector(kind, guide), inputs_of(kind, 0, 0))
    for name, x in losses.items():
        assert x.item() == 0, name
    for name, x in gradients.items():
        assert x is not None and x.abs().max() == 0, name
    empty = [x for name, x in latest.items() if name.endswith("empty_batches")]
    assert empty and set(empty) == {1}


@each_kind
def test_one_image_of_a_batch_may_be_empty(kind):
    losses, latest, gradients = train_step(detector(kind, "gradient"), inputs_of(kind, 0, 4))
    assert all(0 < x.item() < torch.inf for x in losses.values())
    for name, x in gradients.items():
        assert x is not None and x.isfinite().all(), name
        assert x.any() or name.startswith("backbone"), name  # every layer of the heads learns
    assert not any(x for name, x in latest.items() if name.endswith("empty_batches"))


@each_with_prior
def test_a_given_prior_is_the_start_score(kind):
    head = head_with_prior(WITH_PRIOR[kind](prior="1e-4"))
    scores = head.classifier_bias.double().sigmoid()
    assert head.prior == 1e-4 and scores.tolist() == pytest.approx([1e-4] * len(scores), rel=1e-5)


@each_with_prior
def test_an_impossible_prior_or_guide_is_refused(kind):
    for prior in ("automatic", 0, 1.0, None):
        with pytest.raises(BadInput, match="prior=.*'auto'"):
            WITH_PRIOR[kind](prior=prior)
    for guide in ("epoch", -1, None):
        with pytest.raises(BadInput, match="guide=.*'iteration'"):
            WITH_PRIOR[kind](prior=0.01, guide=guide)


@each_with_prior
def test_auto_refuses_to_train_and_still_detects(kind):
    model = WITH_PRIOR[kind](prior="auto")
    with pytest.raises(BadInput, match="prior is still 'auto'"):
        train_step(model, batch(1))
    if kind != "rpn":
        model.test_score_thresh = 0.0
    with torch.no_grad():
        assert len(model.eval()(batch(1))[0]["instances"]) > 0
