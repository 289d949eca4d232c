"""The RPN: losses and gradients computed anew from the head's outputs."""

import pytest
import torch
from detectron2.modeling.matcher import Matcher

from helpers.rpn_cases import INPUTS, KEYS, Case, by_hand, losses_of, predictions_of
from helpers.tiny import batch


def _check_values(case, inputs):
    cls, box = (x.item() for x in case.expected())
    losses, latest, gradients, _ = case.train_step()
    assert list(losses) == KEYS
    assert losses["loss_rpn_loc"].item() == pytest.approx(box, rel=1e-5)
    assert losses["loss_rpn_cls"].item() == pytest.approx(box, rel=1e-5)
    assert latest["guide/rpn/loss_cls_raw"] == pytest.approx(cls, rel=1e-5)
    assert latest["guide/rpn/r"] == pytest.approx(box / cls, rel=1e-5)
    assert latest["guide/rpn/empty_batches"] == 0
    labels, _ = case.labels()
    assert latest["rpn/num_pos_anchors"] == (labels == 1).sum().item() / len(inputs) > 0
    assert latest["rpn/num_neg_anchors"] == (labels == 0).sum().item() / len(inputs) > 0
    for name, gradient in gradients.items():
        assert gradient.isfinite().all() and gradient.abs().max() > 0, name


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(
    ("box_loss", "beta"), [("smooth_l1", 0.0), ("smooth_l1", 0.5), ("giou", 0.0)]
)
def test_losses_are_those_computed_from_the_heads_raw_outputs(name, box_loss, beta):
    inputs = INPUTS[name]()
    _check_values(Case(inputs, box_reg_loss_type=box_loss, smooth_l1_beta=beta), inputs)


def test_the_settings_of_the_sample_have_no_effect():
    inputs = batch(3, 5)
    _check_values(Case(inputs, batch_size_per_image=2, positive_fraction=0.5), inputs)


@pytest.mark.parametrize("threshold", [0.0, 10.0])
def test_anchors_beyond_the_border_are_ignored(threshold):
    inputs = batch(3, 5)
    case, without = Case(inputs, anchor_boundary_thresh=threshold), Case(inputs)
    num_valid, num_valid_without = ((c.labels()[0] >= 0).sum() for c in (case, without))
    assert 0 < num_valid < num_valid_without
    _check_values(case, inputs)


def test_a_matcher_without_a_band_ignores_nothing():
    inputs = batch(3, 5)
    case = Case(inputs, anchor_matcher=Matcher([0.5], [0, 1], allow_low_quality_matches=False))
    latest = case.train_step()[1]
    total = latest["rpn/num_pos_anchors"] + latest["rpn/num_neg_anchors"]
    assert total == sum(len(a) for a in case.anchors())
    _check_values(Case(inputs, anchor_matcher=case.rpn.anchor_matcher), inputs)


@pytest.mark.parametrize("guide", ["iteration", 0.7])
def test_gradients_are_those_of_the_losses_by_hand_and_none_flows_through_the_guide(guide):
    case = Case(guide=guide)
    predictions = predictions_of(case)
    losses, latest = losses_of(case.rpn, case, *predictions)
    anchors = torch.cat([a.tensor for a in case.anchors()])
    cls, box = by_hand(anchors, *predictions, *case.labels(), case.rpn)
    ratio = box.item() / cls.item() if guide == "iteration" else guide
    assert latest["guide/rpn/r"] == pytest.approx(ratio, rel=1e-5)
    for key, loss, factor, own in [
        ("loss_rpn_cls", cls, ratio, 0),
        ("loss_rpn_loc", box, 1.0, 1),
    ]:
        ours = torch.autograd.grad(losses[key], predictions, retain_graph=True, allow_unused=True)
        (expected,) = torch.autograd.grad(loss, predictions[own])
        assert expected.abs().max() > 0
        torch.testing.assert_close(ours[own], factor * expected, rtol=1e-4, atol=1e-7)
        assert ours[1 - own] is None or not ours[1 - own].any()


def test_loss_weights_act_before_the_guide():
    plain, plain_latest, plain_gradients, _ = Case().train_step()
    weight = {"loss_rpn_cls": 3.0, "loss_rpn_loc": 0.25}
    both, latest, gradients, _ = Case(loss_weight=weight).train_step()
    for key in KEYS:
        assert both[key].item() == pytest.approx(0.25 * plain[key].item(), rel=1e-5)
    assert latest["guide/rpn/r"] == pytest.approx(plain_latest["guide/rpn/r"] / 12, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[name] / 4, rtol=1e-4, atol=1e-6)


def test_with_a_constant_guide_each_loss_has_its_weight():
    plain = Case(guide=1.0).train_step()[0]
    weight = {"loss_rpn_cls": 3.0, "loss_rpn_loc": 0.25}
    weighted = Case(guide=0.5, loss_weight=weight).train_step()[0]
    assert weighted["loss_rpn_loc"].item() == pytest.approx(0.25 * plain["loss_rpn_loc"].item())
    assert weighted["loss_rpn_cls"].item() == pytest.approx(1.5 * plain["loss_rpn_cls"].item())
