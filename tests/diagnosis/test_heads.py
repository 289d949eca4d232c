"""What a head hands to its losses, against what a model of Detectron2 is seen to do."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from helpers.guided_detectors import detector, inputs_of
from helpers.tiny import batch, stock_retinanet, tiny_retinanet
from helpers.tiny_detectors import rcnn_batch, stock_fcos, tiny_fcos, tiny_rcnn
from sampling_free import ATSS, PAA, GHMRetinaNet, OHEMRetinaNet
from sampling_free.diagnosis.heads import captured_heads
from sampling_free.utils.errors import BadInput


def calls_of(model, inputs):
    """The calls captured in a training step, their losses named; and the step's losses."""
    with EventStorage(), captured_heads(model.train()) as calls:
        losses = model(inputs)
    for call in calls:
        call.name_terms(losses)
    return calls, losses


def test_labels_are_the_detectors_own():
    model, inputs = stock_retinanet().train(), batch(3, 2)
    (call,), _ = calls_of(model, inputs)
    features = model.backbone(model.preprocess_image(inputs).tensor)
    anchors = model.anchor_generator([features[f] for f in model.head_in_features])
    labels = torch.stack(model.label_anchors(anchors, [x["instances"] for x in inputs])[0])
    assert torch.equal(torch.cat(call.labels, dim=1), labels)
    assert [x.shape[1] for x in call.labels] == [len(x) for x in anchors]
    assert call.num_foreground == int(((labels >= 0) & (labels < 3)).sum()) > 0
    assert call.num_valid == int((labels >= 0).sum()) < labels.numel()


def test_an_rpns_labels_are_turned_into_those_of_one_class(monkeypatch):
    model, seen = tiny_rcnn(stock=True), []
    rpn = model.proposal_generator
    label = rpn.label_and_sample_anchors

    def spy(*args):
        seen.append(label(*args))
        return seen[-1]

    monkeypatch.setattr(rpn, "label_and_sample_anchors", spy)
    (call, _), _ = calls_of(model, rcnn_batch(3, 2))
    theirs = torch.stack(seen[0][0])
    ours = torch.cat(call.labels, dim=1)
    assert torch.equal(ours == 0, theirs == 1) and torch.equal(ours == 1, theirs == 0)
    assert torch.equal(ours == -1, theirs == -1)
    assert call.num_classes == 1 and 0 < call.num_foreground < call.num_valid == 32


def test_a_cascade_has_a_call_for_each_stage_under_the_names_of_the_model():
    calls, losses = calls_of(detector("cascade_mask", "frozen"), rcnn_batch(3, kind="cascade_mask"))
    assert [c.cls_name for c in calls] == [
        "loss_rpn_cls",
        *(f"loss_cls_stage{i}" for i in range(3)),
    ]
    assert [c.loc_names for c in calls[1:]] == [[f"loss_box_reg_stage{i}"] for i in range(3)]
    assert len({c.ratio for c in calls}) == 4
    assert {c.cls_name for c in calls} < losses.keys() and "loss_mask" in losses


@pytest.mark.parametrize(
    "make, is_focal",
    [
        (stock_retinanet, True),
        (stock_fcos, True),
        (lambda: tiny_fcos(ATSS), True),
        (lambda: tiny_fcos(PAA), True),
        (lambda: tiny_retinanet(prior=0.01), False),
        (lambda: tiny_fcos(prior=0.01), False),
        (lambda: tiny_retinanet(GHMRetinaNet), False),
        (lambda: tiny_retinanet(OHEMRetinaNet), False),
        (lambda: tiny_rcnn(stock=True), False),
    ],
)
def test_what_is_focal(make, is_focal):
    calls, _ = calls_of(make(), rcnn_batch(2))
    assert {c.is_focal for c in calls} == {is_focal}


# --- scores, logits and cross entropy, row by row -------------------------------------------------


def softmax_call(logits, labels, num_classes, **kwargs):
    """A call of a box predictor with these logits (R, K+1) and labels (R,)."""
    transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    predictor = FastRCNNOutputLayers(
        ShapeSpec(channels=2), box2box_transform=transform, num_classes=num_classes, **kwargs
    )
    boxes = Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(len(labels), 1))
    proposals = Instances((9, 9), proposal_boxes=boxes, gt_boxes=boxes, gt_classes=labels)
    deltas = torch.zeros(len(labels), 4 * num_classes, requires_grad=True)
    with EventStorage(), captured_heads(nn.ModuleList([predictor])) as calls:
        losses = predictor.losses((logits.requires_grad_(), deltas), [proposals])
    calls[0].name_terms(losses)
    return calls[0], losses


def test_scores_and_cross_entropy_of_a_softmax_by_a_loop():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(12, 4, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 3, 3, 2, 1, 0, 3, 3, 3])
    call, losses = softmax_call(logits, labels, 3)
    right, others, entropy = [], [], 0.0
    for row, label in zip(logits.detach().double(), labels.tolist()):
        p = row.exp() / row.exp().sum()
        entropy -= p[label].log().item()
        if label == 3:
            others.append(p[:3])
        else:
            right.append(p[label])
    found = call.scores()
    torch.testing.assert_close(found[0].double(), torch.stack(right), rtol=1e-5, atol=0)
    torch.testing.assert_close(found[1].double(), torch.stack(others), rtol=1e-5, atol=0)
    assert call.cross_entropy() == pytest.approx(entropy / len(right))
    gradients = torch.autograd.grad(losses["loss_cls"], call.outputs)
    assert sum(call.loss_parts(gradients)) == pytest.approx(losses["loss_cls"].item())


@pytest.mark.parametrize("spread", [1.0, 30.0, 200.0])
def test_parts_of_a_softmax_hold_where_rows_are_certain(spread):
    generator = torch.Generator().manual_seed(1)
    logits = spread * torch.randn(40, 4, generator=generator)
    labels = torch.randint(4, (40,), generator=generator)
    call, losses = softmax_call(logits, labels, 3)
    gradients = torch.autograd.grad(losses["loss_cls"], call.outputs)
    expected = F.cross_entropy(logits.detach().double(), labels, reduction="none") / 40
    parts = [expected[labels < 3].sum().item(), expected[labels == 3].sum().item()]
    assert call.loss_parts(gradients) == pytest.approx(parts, rel=1e-4)


def test_sigmoids_in_a_roi_head_leave_the_last_logit_unused():
    try:
        logits, labels = torch.tensor([[1.0, -2.0, 50.0]] * 3), torch.tensor([0, 1, 2])
        call, losses = softmax_call(logits, labels, 2, use_sigmoid_ce=True)
    except TypeError:
        pytest.skip("this Detectron2's RoI heads have no use_sigmoid_ce")
    assert not call.is_softmax
    p = torch.tensor([1.0, -2.0]).sigmoid()
    right, others = call.scores()
    torch.testing.assert_close(right, p)
    torch.testing.assert_close(others, p[None])
    assert call.share_saturated() == 0
    q = 1 - p
    losses_of = -torch.stack([p[0] * q[1], q[0] * p[1], q[0] * q[1]]).log()
    assert call.cross_entropy() == pytest.approx(losses_of.sum().item() / 2)
    gradients = torch.autograd.grad(losses["loss_cls"], call.outputs)
    expected = [losses_of[:2].sum().item() / 3, losses_of[2].item() / 3]
    assert call.loss_parts(gradients) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "faster"])
def test_cross_entropy_is_the_loss_of_a_detector_that_weighs_nothing(kind):
    calls, losses = calls_of(detector(kind, 1.0), inputs_of(kind, 3, 2))
    for call in calls:
        assert call.cross_entropy() == pytest.approx(losses[call.cls_name].item(), rel=1e-5)


def test_scores_of_sigmoids_are_picked_by_label():
    (call,), _ = calls_of(detector("retinanet", 1.0), batch(3, 2))
    right, others = [], []
    for x, labels in zip(call.outputs, call.labels):
        num_anchors = labels.shape[1] // (x.shape[2] * x.shape[3])
        rows = x.detach().unflatten(1, (num_anchors, 3)).permute(0, 3, 4, 1, 2).flatten(0, 3)
        for row, label in zip(rows, labels.flatten().tolist()):
            if label == 3:
                others.append(row.sigmoid())
            elif label >= 0:
                right.append(row[label].sigmoid())
    found = call.scores()
    torch.testing.assert_close(found[0], torch.stack(right))
    torch.testing.assert_close(found[1], torch.stack(others))


# --- listening ------------------------------------------------------------------------------------


def test_only_calls_with_a_gradient_count():
    model = stock_retinanet().train()
    with EventStorage(), captured_heads(model) as calls:
        with torch.no_grad():
            model(batch(2))
        assert calls == []
        model(batch(2))
    assert len(calls) == 1


def test_losses_are_what_they_were_afterwards_also_those_set_on_an_instance():
    model = stock_retinanet().train()
    with EventStorage():
        expected = model(batch(2))["loss_cls"].item()
    model.loss_normalizer = 100
    with captured_heads(model):
        assert "losses" in vars(model)
    assert "losses" not in vars(model) and model.losses.__func__ is RetinaNet.losses
    original = model.losses
    model.losses = own = lambda *args: original(*args)
    with EventStorage(), captured_heads(model):
        assert model(batch(2))["loss_cls"].item() == expected
    assert vars(model)["losses"] is own


@pytest.mark.parametrize("kind", ["retinanet", "cascade"])
def test_losses_are_what_they_were_after_an_exception(kind):
    model = detector(kind, "iteration")
    with pytest.raises(KeyboardInterrupt), captured_heads(model):
        raise KeyboardInterrupt
    assert not any("losses" in vars(m) for m in model.modules())


def test_a_model_without_a_known_head_is_refused_in_one_line():
    with pytest.raises(BadInput, match="^Linear: no head that is known; known are RetinaNet"):
        with captured_heads(nn.Linear(1, 1)):
            pass
