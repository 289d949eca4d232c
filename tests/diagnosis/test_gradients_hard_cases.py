"""Measured gradients in hard cases, histograms and saturation."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from helpers.gradients_cases import flat
from helpers.guided_detectors import detector, inputs_of
from helpers.probed import with_rpn
from helpers.tiny import batch, stock_retinanet, tiny_retinanet
from helpers.tiny_detectors import rcnn_batch, stock_fcos, tiny_fcos, tiny_rcnn
from sampling_free.baselines.retinanet import GHMRetinaNet
from sampling_free.baselines.rpn import GHMRPN, OHEMRPN
from sampling_free.diagnosis.gradients import BINS, LOWEST, measure, score_histograms
from sampling_free.utils.errors import BadInput


def test_ignored_anchors_are_in_no_number():
    some = tiny_retinanet(prior=0.01, guide=1.0, labels=(0, -1, 1)).train()
    none = tiny_retinanet(prior=0.01, guide=1.0, labels=(0, 0, 1)).train()
    (a,), (b,) = (measure(m, batch(4, 3), with_parts=True).heads for m in (some, none))
    assert a.num_foreground == b.num_foreground and a.num_valid < b.num_valid
    assert a.outputs["loss_cls/foreground"] == pytest.approx(b.outputs["loss_cls/foreground"])
    share = (a.num_valid - a.num_foreground) / (b.num_valid - b.num_foreground)
    of_all = b.outputs["loss_cls/background"]
    assert a.outputs["loss_cls/background"] == pytest.approx(share * of_all, rel=0.02)
    assert sum(a.histograms["background"]) == a.num_valid - a.num_foreground


@pytest.mark.parametrize("make", [tiny_retinanet, stock_retinanet])
def test_everything_ignored(make, monkeypatch):
    model = make(**({} if make is stock_retinanet else {"prior": 0.01})).train()
    label = model.label_anchors
    monkeypatch.setattr(
        model, "label_anchors", lambda *a: ([torch.full_like(x, -1) for x in label(*a)[0]], [])
    )
    monkeypatch.setattr(
        "sampling_free.detectors.retinanet.dense_box_loss", lambda head, a, d, *r: d[0].sum() * 0
    )
    if make is stock_retinanet:
        name = "detectron2.modeling.meta_arch.retinanet._dense_box_regression_loss"
        monkeypatch.setattr(name, lambda a, t, d, *r, **k: d[0].sum() * 0)
    found = measure(model, batch(2), with_parts=True)
    (head,) = found.heads
    assert head.num_valid == head.num_foreground == 0 == head.saturated
    assert set(head.outputs.values()) == {0.0} and head.scores == {}
    assert head.gradient_ratio is head.optimal_prior is head.cross_entropy is None
    assert list(head.loss_parts.values()) == [0, 0]


def test_a_batch_without_a_positive_has_no_ratio_no_prior_and_no_foreground():
    (head,) = measure(detector("retinanet", "iteration").train(), batch(0, 0), True).heads
    assert head.gradient_ratio is head.optimal_prior is head.cross_entropy is None
    assert head.ratio == 0 and list(head.scores) == ["background"]
    assert sum(head.histograms["foreground"]) == 0
    (stock,) = measure(stock_retinanet().train(), batch(0, 0), True).heads
    assert stock.outputs["loss_cls"] == stock.outputs["loss_cls/background"] > 0


def test_a_head_that_is_given_no_proposals():
    model = tiny_rcnn(stock=True).train()
    model.proposal_generator = None
    inputs = rcnn_batch(0, 0)
    for record in inputs:
        proposals = Instances((64, 96), proposal_boxes=Boxes(torch.zeros(0, 4)))
        record["proposals"] = proposals
        proposals.objectness_logits = torch.zeros(0)
    (head,) = measure(model, inputs, with_parts=True).heads
    assert head.num_valid == 0 and set(head.outputs.values()) == {0.0}


def test_a_head_with_foreground_alone_has_no_prior():
    (head,) = measure(detector("retinanet", "iteration", num_classes=1).train(), batch(2)).heads
    head.num_foreground = head.num_valid
    assert head.optimal_prior is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["retinanet", "fcos", "faster"])
def test_autocast_around_it_changes_no_number(kind, dtype):
    model, inputs = detector(kind, "iteration").train(), inputs_of(kind, 3, 2)
    plain = measure(model, inputs, with_parts=True)
    with torch.autocast("cpu", dtype=dtype):
        assert measure(model, inputs, with_parts=True) == plain
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("frozen", ["backbone", "head", "everything"])
@pytest.mark.parametrize("kind", ["retinanet", "faster"])
def test_what_is_frozen_is_measured_all_the_same(kind, frozen):
    model, inputs = detector(kind, "iteration").train(), inputs_of(kind, 3, 2)
    expected = measure(model, inputs, with_parts=True)
    for name, p in model.named_parameters():
        if frozen == "everything" or name.startswith("backbone") == (frozen == "backbone"):
            p.requires_grad_(False)
    assert measure(model, inputs, with_parts=True) == expected
    with torch.no_grad():
        assert measure(model, inputs, with_parts=True) == expected


def test_one_class_and_a_model_of_a_users_own():
    (head,) = measure(tiny_fcos(num_classes=1, prior=0.01).train(), batch(2, num_classes=1)).heads
    assert head.num_classes == 1 and head.outputs["loss_fcos_cls"] > 0

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.layer = nn.Identity(), nn.Linear(2, 2)

    with pytest.raises(BadInput, match="Own: no head that is known.*RetinaNet"):
        measure(Own(), [])


def test_the_step_itself_is_told_of_values_that_are_not_finite():
    model = tiny_rcnn(stock=True).train()
    with torch.no_grad():
        model.backbone.bottom_up.stem.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError):
        measure(model, rcnn_batch(2))
    assert "forward" not in vars(model.backbone)
    model = detector("retinanet", "iteration").train()
    with torch.no_grad():
        model.head.cls_score.bias.fill_(math.nan)
    (head,) = measure(model, batch(2), with_parts=True).heads
    assert math.isnan(head.outputs["loss_cls"]) and math.isfinite(head.outputs["loss_box_reg"])


def test_facts_about_the_heads():
    def facts(model, *nums):
        heads = measure(model.train(), rcnn_batch(*nums)).heads
        return [
            (h.is_softmax, h.takes_all_anchors, h.is_focal, h.takes_measured_prior, h.prior_key)
            for h in heads
        ]

    assert facts(stock_retinanet(), 2) == [(False, True, True, False, "model.head.prior_prob")]
    assert facts(stock_fcos(), 2) == [(False, True, True, False, "model.head.prior_prob")]
    assert facts(tiny_retinanet(prior=0.1), 2) == [(False, True, False, True, "model.prior")]
    assert facts(tiny_retinanet(GHMRetinaNet), 2)[0][2] is False
    rpn, roi = facts(tiny_rcnn(stock=True), 2)
    assert rpn == (False, False, False, False, "") and roi == (True, False, False, False, "")
    rpn, roi = facts(tiny_rcnn(rpn={"prior": 0.1}), 2)
    assert rpn == (False, True, False, True, "model.proposal_generator.prior")
    assert roi == (True, False, False, False, "")
    assert facts(with_rpn(GHMRPN), 2)[0][1] and facts(with_rpn(OHEMRPN), 2)[0][1]


def test_histograms_count_the_foregrounds_own_class_and_the_highest_of_the_background():
    right = torch.tensor([1.0, 0.9, 1e-3, 1e-12, 0.0])
    others = torch.tensor([[1e-5, 1e-1], [1e-7, 1e-8]])
    found = score_histograms(right, others)
    edges = found["edges"]
    assert len(edges) == BINS + 1 and edges[0] == LOWEST and edges[-1] == 0
    expected = [0] * BINS
    for x in right.tolist():
        log = max(math.log10(x), LOWEST) if x > 0 else LOWEST
        expected[min(int((log - LOWEST) / -LOWEST * BINS + 1e-6), BINS - 1)] += 1
    assert found["foreground"] == expected and sum(expected) == 5
    assert [i for i, n in enumerate(found["background"]) if n] == [5, 35]  # of -7 and of -1
    empty = score_histograms(torch.zeros(0), torch.zeros(0, 3))
    assert sum(empty["foreground"]) == sum(empty["background"]) == 0


@pytest.mark.parametrize("bias", [-17.0, 17.0])
def test_saturated_logits_are_a_share(bias):
    model = flat(tiny_retinanet(guide=1.0, prior=0.5), 0.5)
    with torch.no_grad():
        model.head.cls_score.bias.view(-1, 3)[:, 0] = bias
    (head,) = measure(model, batch(2)).heads
    assert head.saturated == pytest.approx(1 / 3)
