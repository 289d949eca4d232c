"""The RPN: what is Detectron2's, hard batches and settings."""

import copy
import math

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.utils.events import EventStorage
from torch import nn

from helpers.rpn_cases import INPUTS, KEYS, Case, by_hand, losses_of, predictions_of
from helpers.tiny import WIDTH, batch
from helpers.tiny_detectors import tiny_rcnn
from sampling_free.utils.errors import BadInput

EVERYTHING = 10**6  # anchors sampled by stock of each image: all of them


@pytest.mark.parametrize("name, threshold", [*zip(INPUTS, (-1.0, 0.0, 0.0))])
def test_labels_and_boxes_are_those_of_stock_where_its_sample_holds_everything(name, threshold):
    inputs = INPUTS[name]()
    ours = Case(inputs, anchor_boundary_thresh=threshold)
    stock = Case(
        inputs, stock=True, batch_size_per_image=EVERYTHING, anchor_boundary_thresh=threshold
    )
    results = [c.rpn.label_and_sample_anchors(c.anchors(), c.instances) for c in (ours, stock)]
    for a, b in zip(*(labels for labels, _ in results)):
        assert torch.equal(a, b)
    for a, b in zip(*(boxes for _, boxes in results)):
        assert torch.equal(a, b)
    assert torch.equal(torch.stack(results[0][0]), ours.labels()[0])


@pytest.mark.parametrize("name, box_loss", [*zip(INPUTS, ("smooth_l1", "giou", "smooth_l1"))])
def test_without_guide_stock_has_the_same_losses_and_gradients_by_another_divisor(name, box_loss):
    inputs = INPUTS[name]()
    weight = {"loss_rpn_cls": 0.5, "loss_rpn_loc": 2.0}
    settings = dict(box_reg_loss_type=box_loss, loss_weight=weight)
    ours = Case(inputs, guide=1.0, **settings)
    stock = Case(inputs, stock=True, batch_size_per_image=EVERYTHING, seed=9, **settings)
    stock.rpn.load_state_dict(ours.rpn.state_dict())
    our_losses, latest, our_gradients, _ = ours.train_step()
    their_losses, their_latest, their_gradients, _ = stock.train_step()
    for key in ("rpn/num_pos_anchors", "rpn/num_neg_anchors"):
        assert latest[key] == their_latest[key] > 0
    factor = EVERYTHING / latest["rpn/num_pos_anchors"]
    for key in KEYS:
        torch.testing.assert_close(
            our_losses[key], their_losses[key] * factor, rtol=1e-4, atol=1e-7
        )
    for key, gradient in our_gradients.items():
        torch.testing.assert_close(gradient, their_gradients[key] * factor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_proposals_are_bit_equal_to_stock(training):
    inputs = batch(4, 0, 2)
    ours, stock = Case(inputs), Case(inputs, stock=True, seed=9)
    stock.rpn.load_state_dict(ours.rpn.state_dict())
    results = []
    for case in (ours, stock):
        case.rpn.train(training)
        with EventStorage(), torch.no_grad():
            proposals, losses = case.rpn(case.images, case.features, case.instances)
        assert bool(losses) == training
        results.append(proposals)
    for a, b in zip(*results):
        assert len(a) == len(b) > 10 and a.image_size == b.image_size
        assert torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor)
        assert torch.equal(a.objectness_logits, b.objectness_logits)


@pytest.mark.parametrize(
    ("nums", "matcher", "box_loss", "guide"),
    [
        ((0, 0), Matcher([0.3, 0.7], [0, -1, 1], True), "giou", 1.0),
        ((3, 2), Matcher([0.998, 0.999], [0, -1, 1], False), "smooth_l1", "iteration"),
        ((3, 2), Matcher([0.3, 0.7], [-1, -1, -1], False), "giou", "iteration"),
    ],
    ids=["no object", "no match", "all ignored"],
)
def test_without_foreground_every_parameter_gets_a_zero(nums, matcher, box_loss, guide):
    case = Case(batch(*nums), anchor_matcher=matcher, box_reg_loss_type=box_loss, guide=guide)
    losses, latest, gradients, proposals = case.train_step()
    assert [losses[k].item() for k in KEYS] == [0, 0]
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.abs().max() == 0, name
    assert latest["guide/rpn/empty_batches"] == 1 and latest["rpn/num_pos_anchors"] == 0
    assert all(len(p) > 0 for p in proposals)


@pytest.mark.parametrize("prior", [1e-7, 0.3])
def test_with_zero_weights_the_unscaled_loss_is_that_of_one_score_everywhere(prior):
    case = Case(prior=prior)
    nn.init.zeros_(case.rpn.rpn_head.objectness_logits.weight)
    bias = case.rpn.rpn_head.objectness_logits.bias.double()
    assert bias.sigmoid().tolist() == pytest.approx([prior] * len(bias), rel=1e-5)
    labels, _ = case.labels()
    num, num_background = (labels == 1).sum().item(), (labels == 0).sum().item()
    cls = -math.log(prior) - num_background / num * math.log1p(-prior)
    losses, latest, gradients, _ = case.train_step()
    assert latest["guide/rpn/loss_cls_raw"] == pytest.approx(cls, rel=1e-5)
    assert losses["loss_rpn_cls"].item() == pytest.approx(losses["loss_rpn_loc"].item(), rel=1e-5)
    ratio = losses["loss_rpn_loc"].item() / cls
    expected = ratio * (num_background / num * prior - (1 - prior))
    total = gradients["rpn_head.objectness_logits.bias"].sum().item()
    assert total == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
def test_predictions_in_half_precision_lose_nothing_more(box_loss):
    # Scores of 1e-6 on anchors with sides of up to 1448 pixels.
    case = Case(batch(3, 5, size=(768, 1024)), box_reg_loss_type=box_loss)
    case.rpn.anchor_generator = copy.deepcopy(case.rpn.anchor_generator)
    for cell, scale in zip(case.rpn.anchor_generator.cell_anchors, (4, 8, 8)):
        cell.mul_(scale)
    case.rpn.anchor_generator.strides = [128, 256, 512]
    case.features = {
        f: torch.zeros(2, WIDTH, *size)
        for f, size in zip(case.rpn.in_features, [(6, 8), (3, 4), (2, 2)])
    }
    predictions = predictions_of(case, torch.float16, offset=-14)
    anchors = torch.cat([a.tensor for a in case.anchors()])
    labels, boxes = case.labels()
    sides = (boxes[..., 2:] - boxes[..., :2])[labels == 1]
    assert sides.max() > 256
    cls, box = by_hand(anchors, *predictions, labels, boxes, case.rpn)
    losses, latest = losses_of(case.rpn, case, *predictions)
    assert losses["loss_rpn_loc"].item() == pytest.approx(box.item(), rel=1e-4)
    assert losses["loss_rpn_cls"].item() == pytest.approx(box.item(), rel=1e-4)
    assert latest["guide/rpn/loss_cls_raw"] == pytest.approx(cls.item(), rel=1e-5)
    sum(losses.values()).backward()
    for x in predictions:
        assert x.grad.isfinite().all() and x.grad.any()


def test_a_head_without_bias_is_refused_by_its_layer():
    head = tiny_rcnn(stock=True).proposal_generator.rpn_head
    head.objectness_logits = nn.Conv2d(WIDTH, 6, 1, bias=False)
    with pytest.raises(BadInput, match="StandardRPNHead has no parameter objectness_logits.bias"):
        Case(head=head, prior="auto")
