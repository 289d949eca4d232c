"""RoI heads: losses against loops over proposals, labels against Detectron2's without a limit."""

import inspect

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import (
    FastRCNNOutputLayers,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from helpers.roi_losses import SIZE, WEIGHTS, box_targets, expected_sums
from helpers.tiny import with_papers_guide
from sampling_free import BadInput, SamplingFreeFastRCNNOutputLayers

ON_MAIN = "use_sigmoid_ce" in inspect.signature(FastRCNNOutputLayers.__init__).parameters


# Oracles in plain Python numbers, one proposal at a time.


def make_predictor(cls=SamplingFreeFastRCNNOutputLayers, num_classes=3, agnostic=False, **kwargs):
    torch.manual_seed(1)
    return cls(
        ShapeSpec(channels=5),
        box2box_transform=Box2BoxTransform(weights=WEIGHTS),
        num_classes=num_classes,
        cls_agnostic_bbox_reg=agnostic,
        **with_papers_guide(cls, kwargs),
    )


def labeled(boxes, classes, gt_boxes=None):
    instances = Instances(SIZE, proposal_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    if gt_boxes is not None:
        instances.gt_boxes = Boxes(torch.tensor(gt_boxes).reshape(-1, 4))
    return instances


def hand_made(num_classes=3):
    """Labeled proposals of two images; the second has no object, and so no gt_boxes."""
    background = num_classes
    boxes = [[2.0, 3, 30, 40], [10, 10, 50, 33], [0, 0, 90, 60], [40, 8, 60, 20], [5, 5, 25, 36]]
    gt = [[4.0, 2, 33, 44], [12, 8, 44, 35], [4, 2, 33, 44], [12, 8, 44, 35], [4, 2, 33, 44]]
    classes = [num_classes - 1, 0, background, background, num_classes // 2]
    second = [[1.0, 1, 20, 20], [30, 30, 90, 60], [7, 3, 17, 60]]
    return [labeled(boxes, classes, gt), labeled(second, [background] * 3)]


def made_up_predictions(predictor, proposals, seed=0, scale=1.0):
    """Leaf tensors in place of what the predictor would say."""
    generator = torch.Generator().manual_seed(seed)
    rows = sum(map(len, proposals))
    shapes = (rows, predictor.num_classes + 1), (rows, predictor.bbox_pred.out_features)
    return tuple(
        (scale * torch.randn(shape, generator=generator)).requires_grad_() for shape in shapes
    )


def run_losses(predictor, predictions, proposals):
    with EventStorage() as storage:
        losses = predictor.losses(predictions, proposals)
        return losses, {k: v for k, (v, _) in storage.latest().items()}


BOX_LOSSES = [("smooth_l1", 0.0), ("smooth_l1", 0.5), ("giou", 0.0)]


class TestLosses:
    @pytest.mark.parametrize(("box_loss", "beta"), BOX_LOSSES)
    @pytest.mark.parametrize("num_classes, agnostic", [(1, False), (3, False), (3, True)])
    def test_they_are_those_of_a_loop_over_the_proposals(
        self, num_classes, agnostic, box_loss, beta
    ):
        box = {"box_reg_loss_type": box_loss, "smooth_l1_beta": beta}
        predictor = make_predictor(num_classes=num_classes, agnostic=agnostic, **box)
        proposals = hand_made(num_classes)
        predictions = made_up_predictions(predictor, proposals)
        sum_cls, sum_box, num_foreground = expected_sums(predictor, predictions, proposals)
        losses, latest = run_losses(predictor, predictions, proposals)
        assert num_foreground == 3 and losses.keys() == {"loss_cls", "loss_box_reg"}
        assert losses["loss_box_reg"].item() == pytest.approx(sum_box / 3, rel=1e-5)
        assert losses["loss_cls"].item() == pytest.approx(2 * sum_box / 3, rel=1e-5)
        assert latest["guide/roi/loss_cls_raw"] == pytest.approx(sum_cls / 3, rel=1e-5)
        assert latest["guide/roi/r"] == pytest.approx(2 * sum_box / sum_cls, rel=1e-5)
        assert latest["guide/roi/empty_batches"] == 0

    def test_the_gradients_are_r_times_the_plain_ones(self):
        predictor, proposals = make_predictor(), hand_made()
        logits, deltas = predictions = made_up_predictions(predictor, proposals)
        losses, latest = run_losses(predictor, predictions, proposals)
        of_cls = torch.autograd.grad(
            losses["loss_cls"], predictions, allow_unused=True, retain_graph=True
        )
        labels = torch.cat([p.gt_classes for p in proposals])
        plain = (logits.softmax(dim=1) - nn.functional.one_hot(labels, 4)).detach() / 3
        torch.testing.assert_close(of_cls[0], latest["guide/roi/r"] * plain)
        assert of_cls[1] is None  # nothing flows through r
        of_box = torch.autograd.grad(losses["loss_box_reg"], predictions, allow_unused=True)
        assert of_box[0] is None
        expected = torch.zeros_like(deltas)
        rows = torch.cat([p.proposal_boxes.tensor for p in proposals]).double()
        for i, label in enumerate(labels.tolist()):
            if label < 3:
                own = slice(4 * label, 4 * label + 4)
                target = box_targets(rows[i], proposals[0].gt_boxes.tensor[i].double(), WEIGHTS)
                expected[i, own] = (deltas[i, own].detach() - torch.tensor(target)).sign() / 3
        torch.testing.assert_close(of_box[1], expected)

    def test_the_box_losss_weight_acts_before_the_guide(self):
        proposals = hand_made()
        plain, weighted = make_predictor(), make_predictor(loss_weight={"loss_box_reg": 0.25})
        predictions = made_up_predictions(plain, proposals)
        a, b = (run_losses(p, predictions, proposals)[0] for p in (plain, weighted))
        for key in a:
            assert b[key].item() == pytest.approx(0.25 * a[key].item(), rel=1e-6)

    def test_the_classification_losss_weight_cancels_under_the_guide_alone(self):
        proposals = hand_made()
        predictions = made_up_predictions(make_predictor(), proposals)
        for guide, factor in (("iteration", 1.0), (1.0, 7.0)):
            plain = make_predictor(guide=guide)
            weighted = make_predictor(guide=guide, loss_weight={"loss_cls": 7.0})
            a, b = (run_losses(p, predictions, proposals)[0] for p in (plain, weighted))
            assert b["loss_cls"].item() == pytest.approx(factor * a["loss_cls"].item(), rel=1e-5)
            assert b["loss_box_reg"].item() == pytest.approx(a["loss_box_reg"].item(), rel=1e-6)

    @pytest.mark.parametrize(("box_loss", "beta"), BOX_LOSSES)
    def test_without_the_guide_they_are_stocks_but_for_the_divisor(self, box_loss, beta):
        settings = {"box_reg_loss_type": box_loss, "smooth_l1_beta": beta}
        settings["loss_weight"] = {"loss_box_reg": 0.25, "loss_cls": 2.0}
        ours = make_predictor(guide=1.0, **settings)
        stock = make_predictor(FastRCNNOutputLayers, **settings)
        proposals = hand_made()
        predictions = made_up_predictions(ours, proposals)
        a, latest = run_losses(ours, predictions, proposals)
        b, _ = run_losses(stock, predictions, proposals)
        assert a.keys() == b.keys() and latest["guide/roi/r"] == 1
        for key in a:
            torch.testing.assert_close(a[key] * 3 / 8, b[key])
            gradients = [
                torch.autograd.grad(x, predictions, allow_unused=True) for x in (a[key], b[key])
            ]
            for ga, gb in zip(*gradients):
                assert (ga is None) == (gb is None)
                if ga is not None:
                    torch.testing.assert_close(ga * 3 / 8, gb)

    def test_proposals_without_a_positive_give_connected_zeros(self):
        predictor, proposals = make_predictor(), hand_made()
        for instances in proposals:
            instances.gt_classes[:] = 3
        predictions = made_up_predictions(predictor, proposals)
        losses, latest = run_losses(predictor, predictions, proposals)
        assert losses["loss_cls"].item() == losses["loss_box_reg"].item() == 0
        for gradient in torch.autograd.grad(sum(losses.values()), predictions):
            assert gradient.abs().max() == 0
        assert latest["guide/roi/r"] == 0 and latest["guide/roi/empty_batches"] == 1

    @pytest.mark.skipif(not ON_MAIN, reason="sigmoid cross entropy came after v0.6")
    def test_sigmoid_cross_entropy_has_no_prior_and_is_refused(self):
        with pytest.raises(BadInput, match="use_sigmoid_ce=True.*no prior"):
            make_predictor(use_sigmoid_ce=True)


class TestSoftmaxPrior:
    @pytest.mark.parametrize("num_classes, prior", [(1, 1e-4), (80, 0.01)])
    def test_start_scores_are_the_prior_and_background_has_the_rest(self, num_classes, prior):
        predictor = make_predictor(num_classes=num_classes, softmax_prior=prior)
        nn.init.zeros_(predictor.cls_score.weight)
        logits, _ = predictor(torch.randn(4, 5))
        scores = logits.double().softmax(dim=1)
        expected = [prior] * num_classes + [1 - num_classes * prior]
        for row in scores.tolist():
            assert row == pytest.approx(expected, rel=1e-5)

    def test_it_is_off_unless_asked_for(self):
        ours, stock = make_predictor(), make_predictor(FastRCNNOutputLayers)
        assert ours.softmax_prior is None
        for key, value in stock.state_dict().items():
            assert torch.equal(ours.state_dict()[key], value), key

    @pytest.mark.parametrize("prior", [0, 1 / 3, float("nan"), "auto"])
    def test_an_impossible_one_is_refused(self, prior):
        with pytest.raises(BadInput, match="softmax_prior=.*None leaves it off"):
            make_predictor(softmax_prior=prior)


# Labels of the proposals
