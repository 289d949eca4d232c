"""RoI heads: losses against loops over proposals, labels against Detectron2's without a limit."""

import inspect
import math

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import (
    FastRCNNOutputLayers,
    Res5ROIHeads,
    StandardROIHeads,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tiny import train_step
from tiny_detectors import rcnn_batch, tiny_rcnn
from torch import nn

from sampling_free import (
    BadInput,
    SamplingFreeFastRCNNOutputLayers,
    SamplingFreeRes5ROIHeads,
    SamplingFreeRPN,
    SamplingFreeStandardROIHeads,
    add_sampling_free_config,
)

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SIZE = (64, 96)
KINDS = ["faster", "mask", "keypoint", "c4"]
ON_MAIN = "use_sigmoid_ce" in inspect.signature(FastRCNNOutputLayers.__init__).parameters


# Oracles in plain Python numbers, one proposal at a time.


def cross_entropy(logits, label):
    logits = [float(x) for x in logits]
    top = max(logits)
    return top + math.log(sum(math.exp(x - top) for x in logits)) - logits[label]


def box_targets(proposal, box, weights):
    (x0, y0, x1, y1), (u0, v0, u1, v1) = proposal.tolist(), box.tolist()
    width, height = x1 - x0, y1 - y0
    return [
        weights[0] * ((u0 + u1) / 2 - (x0 + x1) / 2) / width,
        weights[1] * ((v0 + v1) / 2 - (y0 + y1) / 2) / height,
        weights[2] * math.log((u1 - u0) / width),
        weights[3] * math.log((v1 - v0) / height),
    ]


def decoded(proposal, deltas, weights):
    (x0, y0, x1, y1), deltas = proposal.tolist(), deltas.tolist()
    width, height = x1 - x0, y1 - y0
    x = (x0 + x1) / 2 + deltas[0] / weights[0] * width
    y = (y0 + y1) / 2 + deltas[1] / weights[1] * height
    w, h = width * math.exp(deltas[2] / weights[2]), height * math.exp(deltas[3] / weights[3])
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def overlap(a, b):
    """(IoU, GIoU) of two boxes."""
    (x0, y0, x1, y1), (u0, v0, u1, v1) = a, b
    both = max(0, min(x1, u1) - max(x0, u0)) * max(0, min(y1, v1) - max(y0, v0))
    either = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - both
    hull = (max(x1, u1) - min(x0, u0)) * (max(y1, v1) - min(y0, v0))
    return both / either, both / either - (hull - either) / hull


def expected_sums(predictor, predictions, proposals):
    """(sum of cross entropies, sum of box losses, foreground) without any loss weight."""
    logits, deltas = (x.detach().double() for x in predictions)
    num_classes, weights = predictor.num_classes, predictor.box2box_transform.weights
    sum_cls = sum_box = num_foreground = 0
    row = -1
    for instances in proposals:
        for i, label in enumerate(instances.gt_classes.tolist()):
            row += 1
            sum_cls += cross_entropy(logits[row], label)
            if label < num_classes:
                num_foreground += 1
                own = deltas[row]
                if len(own) > 4:
                    own = own[4 * label : 4 * label + 4]
                proposal = instances.proposal_boxes.tensor[i].double()
                box = instances.gt_boxes.tensor[i].double()
                if predictor.box_reg_loss_type == "giou":
                    sum_box += 1 - overlap(decoded(proposal, own, weights), box.tolist())[1]
                    continue
                for d, t in zip(own.tolist(), box_targets(proposal, box, weights)):
                    error, beta = abs(d - t), predictor.smooth_l1_beta
                    sum_box += error**2 / (2 * beta) if error < beta else error - beta / 2
    assert row + 1 == len(logits) == len(deltas)
    return sum_cls, sum_box, num_foreground


def make_predictor(cls=SamplingFreeFastRCNNOutputLayers, num_classes=3, agnostic=False, **kwargs):
    torch.manual_seed(1)
    return cls(
        ShapeSpec(channels=5),
        box2box_transform=Box2BoxTransform(weights=WEIGHTS),
        num_classes=num_classes,
        cls_agnostic_bbox_reg=agnostic,
        **kwargs,
    )


def labelled(boxes, classes, gt_boxes=None):
    instances = Instances(SIZE, proposal_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    if gt_boxes is not None:
        instances.gt_boxes = Boxes(torch.tensor(gt_boxes).reshape(-1, 4))
    return instances


def hand_made(num_classes=3):
    """Labelled proposals of two images; the second has no object, and so no gt_boxes."""
    background = num_classes
    boxes = [[2.0, 3, 30, 40], [10, 10, 50, 33], [0, 0, 90, 60], [40, 8, 60, 20], [5, 5, 25, 36]]
    gt = [[4.0, 2, 33, 44], [12, 8, 44, 35], [4, 2, 33, 44], [12, 8, 44, 35], [4, 2, 33, 44]]
    classes = [num_classes - 1, 0, background, background, num_classes // 2]
    second = [[1.0, 1, 20, 20], [30, 30, 90, 60], [7, 3, 17, 60]]
    return [labelled(boxes, classes, gt), labelled(second, [background] * 3)]


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
    @pytest.mark.parametrize("agnostic", [False, True])
    @pytest.mark.parametrize("num_classes", [1, 3])
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

    @pytest.mark.parametrize("weight", [0.25, 3.0])
    def test_the_box_losss_weight_acts_before_the_guide(self, weight):
        proposals = hand_made()
        plain, weighted = make_predictor(), make_predictor(loss_weight={"loss_box_reg": weight})
        predictions = made_up_predictions(plain, proposals)
        a, b = (run_losses(p, predictions, proposals)[0] for p in (plain, weighted))
        for key in a:
            assert b[key].item() == pytest.approx(weight * a[key].item(), rel=1e-6)

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
    @pytest.mark.parametrize("loss_weight", [1.0, {"loss_box_reg": 0.25, "loss_cls": 2.0}])
    def test_without_the_guide_they_are_stocks_but_for_the_divisor(
        self, box_loss, beta, loss_weight
    ):
        settings = {"box_reg_loss_type": box_loss, "smooth_l1_beta": beta}
        settings["loss_weight"] = loss_weight
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

    def test_no_proposal_at_all_gives_connected_zeros(self):
        predictor = make_predictor()
        proposals = [labelled([], [], []), labelled([], [])]
        predictions = made_up_predictions(predictor, proposals)
        losses, _ = run_losses(predictor, predictions, proposals)
        assert losses["loss_cls"].item() == losses["loss_box_reg"].item() == 0
        sum(losses.values()).backward()
        assert all(x.grad.shape == x.shape for x in predictions)

    def test_bfloat16_autocast_gives_nearly_the_same(self):
        predictor, proposals = make_predictor(), hand_made()
        features = torch.randn(8, 5, generator=torch.Generator().manual_seed(3))
        answers = []
        for enabled in (False, True):
            predictor.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                predictions = predictor(features)
                assert predictions[0].dtype == (torch.bfloat16 if enabled else torch.float32)
                losses, latest = run_losses(predictor, predictions, proposals)
            sum(losses.values()).backward()
            gradients = [p.grad.clone() for p in predictor.parameters()]
            answers.append((losses, latest, gradients))
        (full, full_latest, full_gradients), (half, half_latest, half_gradients) = answers
        for key in full:
            assert half[key].dtype == torch.float32
            assert half[key].item() == pytest.approx(full[key].item(), rel=0.02)
        assert half_latest["guide/roi/r"] == pytest.approx(full_latest["guide/roi/r"], rel=0.02)
        for a, b in zip(full_gradients, half_gradients):
            assert (a - b).norm() < 0.05 * a.norm()

    @pytest.mark.parametrize("guide", ["epoch", -1, None])
    def test_an_unknown_guide_is_refused(self, guide):
        with pytest.raises(BadInput, match="guide"):
            make_predictor(guide=guide)

    @pytest.mark.skipif(not ON_MAIN, reason="sigmoid cross entropy came after v0.6")
    def test_sigmoid_cross_entropy_has_no_prior_and_is_refused(self):
        with pytest.raises(BadInput, match="use_sigmoid_ce=True.*no prior"):
            make_predictor(use_sigmoid_ce=True)


class TestSoftmaxPrior:
    @pytest.mark.parametrize("num_classes", [1, 3, 80])
    @pytest.mark.parametrize("prior", [1e-4, 0.01])
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

    @pytest.mark.parametrize("prior", [0, 1 / 3, 0.5, -0.1, float("nan"), "auto"])
    def test_an_impossible_one_is_refused(self, prior):
        with pytest.raises(BadInput, match="softmax_prior=.*None leaves it off"):
            make_predictor(softmax_prior=prior)


# Labels of the proposals


def targets_and_proposals(seed=0, nums=(3, 0, 5), num_proposals=40):
    """Ground truth of some images, and proposals, half of them near the objects."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator)

    targets, proposals = [], []
    for num in nums:
        corner = uniform(num, 2) * 40
        boxes = torch.cat([corner, corner + 8 + 16 * uniform(num, 2)], dim=1)
        classes = torch.randint(3, (num,), generator=generator)
        targets.append(Instances(SIZE, gt_boxes=Boxes(boxes), gt_classes=classes))
        corner = uniform(num_proposals, 2) * 50
        around = torch.cat([corner, corner + 4 + 20 * uniform(num_proposals, 2)], dim=1)
        if num:
            near = boxes[torch.arange(num_proposals // 2) % num]
            around[: len(near)] = near + 6 * uniform(len(near), 4) - 3
        found = Instances(SIZE, proposal_boxes=Boxes(around))
        found.objectness_logits = uniform(num_proposals)
        proposals.append(found)
    return targets, proposals


def roi_heads(stock=False, **kwargs):
    if stock:
        kwargs.update(batch_size_per_image=10**6, positive_fraction=1.0)
    return tiny_rcnn(stock=stock, **kwargs).roi_heads.train()


def label(heads, proposals, targets):
    with EventStorage() as storage:
        labelled = heads.label_and_sample_proposals(proposals, targets)
        return labelled, {k: v for k, (v, _) in storage.latest().items()}


def rows(instances):
    """Each proposal with its class and object, for comparing as multisets."""
    fields = [instances.proposal_boxes.tensor, instances.gt_classes[:, None].float()]
    if instances.has("gt_boxes"):
        fields.append(instances.gt_boxes.tensor)
    return sorted(map(tuple, torch.cat(fields, dim=1).tolist()))


MATCHERS = {
    "plain": ([0.5], [0, 1]),
    "ignoring": ([0.3, 0.6], [0, -1, 1]),
}
# Fast R-CNN's: what overlaps with nothing is ignored, but for an image without objects.
LOWEST_IGNORED = ([0.1, 0.5], [-1, 0, 1])


class TestEveryProposal:
    @pytest.mark.parametrize("append", [True, False])
    def test_all_proposals_and_the_ground_truth_are_kept_in_order(self, append):
        targets, proposals = targets_and_proposals()
        boxes = [p.proposal_boxes.tensor.clone() for p in proposals]
        kept, _ = label(roi_heads(proposal_append_gt=append), proposals, targets)
        for got, given, target in zip(kept, boxes, targets):
            whole = torch.cat([given, target.gt_boxes.tensor]) if append else given
            assert torch.equal(got.proposal_boxes.tensor, whole)

    @pytest.mark.parametrize("name", MATCHERS)
    def test_labels_are_those_of_the_best_overlap(self, name):
        thresholds, labels = MATCHERS[name]
        matcher = Matcher(thresholds, labels, allow_low_quality_matches=False)
        targets, proposals = targets_and_proposals()
        kept, latest = label(roi_heads(proposal_matcher=matcher), proposals, targets)
        num_ignored, numbers = 0, []
        for got, given, target in zip(kept, proposals, targets):
            boxes = given.proposal_boxes.tensor.tolist() + target.gt_boxes.tensor.tolist()
            expected = []
            for box in boxes:
                ious = [overlap(box, gt)[0] for gt in target.gt_boxes.tensor.tolist()]
                best = max(ious, default=0.0)
                if best >= thresholds[-1]:
                    expected.append((box, target.gt_classes[ious.index(best)].item()))
                elif best < thresholds[0]:
                    expected.append((box, 3))
                else:
                    num_ignored += 1
            assert got.proposal_boxes.tensor.tolist() == [box for box, _ in expected]
            assert got.gt_classes.tolist() == [k for _, k in expected]
            numbers.append((sum(k < 3 for _, k in expected), sum(k == 3 for _, k in expected)))
        assert (num_ignored > 5) == (name == "ignoring")
        assert numbers[0][0] > 5 and numbers[1] == (0, 40)
        assert latest["roi_head/num_fg_samples"] == pytest.approx(sum(a for a, _ in numbers) / 3)
        assert latest["roi_head/num_bg_samples"] == pytest.approx(sum(b for _, b in numbers) / 3)

    @pytest.mark.parametrize("matcher", [*MATCHERS.values(), LOWEST_IGNORED])
    @pytest.mark.parametrize("seed", [0, 1])
    def test_they_are_stocks_with_a_sample_larger_than_all(self, matcher, seed):
        settings = matcher

        def labelled(stock):
            matcher = Matcher(*settings, allow_low_quality_matches=False)
            targets, proposals = targets_and_proposals(seed)
            return label(roi_heads(stock, proposal_matcher=matcher), proposals, targets)

        (ours, our_numbers), (theirs, their_numbers) = labelled(False), labelled(True)
        for a, b in zip(ours, theirs):
            assert a.get_fields().keys() == b.get_fields().keys()
            assert rows(a) == rows(b) and len(a) > 15
        assert our_numbers == their_numbers

    def test_the_given_ground_truth_is_left_as_it_was(self):
        targets, proposals = targets_and_proposals()
        before = [t.gt_classes.clone() for t in targets]
        label(roi_heads(), proposals, targets)
        assert all(torch.equal(t.gt_classes, b) for t, b in zip(targets, before))

    def test_they_take_no_random_numbers(self):
        targets, proposals = targets_and_proposals()
        heads = roi_heads()
        before = torch.get_rng_state()
        label(heads, proposals, targets)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("kind", ["c4", "cascade"])
    def test_the_other_roi_heads_keep_them_too(self, kind):
        targets, proposals = targets_and_proposals()
        kept, _ = label(roi_heads(kind=kind), proposals, targets)
        assert [len(x) for x in kept] == [43, 40, 45]


# The whole detector


def model_of(kind, num_classes=3, **kwargs):
    return tiny_rcnn(kind, num_classes, rpn={"prior": 0.01}, **kwargs)


def spy(monkeypatch, module, name):
    """Calls of a method: [(args, result), ...]."""
    calls, method = [], getattr(module, name)

    def wrapper(*args, **kwargs):
        result = method(*args, **kwargs)
        calls.append((args, result))
        return result

    monkeypatch.setattr(module, name, wrapper)
    return calls


OWN_LOSSES = {"mask": {"loss_mask"}, "keypoint": {"loss_keypoint"}, "c4": set(), "faster": set()}
BOTH = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_training_uses_every_proposal_and_guides_the_loss(kind, num_classes, monkeypatch):
    model = model_of(kind, num_classes)
    found = spy(monkeypatch, model.proposal_generator, "forward")
    lossed = spy(monkeypatch, model.roi_heads.box_predictor, "losses")
    inputs = rcnn_batch(3, 5, kind=kind, num_classes=num_classes)
    losses, latest, gradients = train_step(model, inputs)
    assert losses.keys() == BOTH | OWN_LOSSES[kind]
    predictions, proposals = lossed[0][0]
    num_found = [len(p) for p in found[0][1][0]]
    assert [len(p) for p in proposals] == [num_found[0] + 3, num_found[1] + 5]
    sums = expected_sums(model.roi_heads.box_predictor, predictions, proposals)
    sum_cls, sum_box, num_foreground = sums
    assert num_foreground >= 8  # the ground truth itself
    assert losses["loss_box_reg"].item() == pytest.approx(sum_box / num_foreground, rel=1e-4)
    assert losses["loss_cls"].item() == pytest.approx(2 * sum_box / num_foreground, rel=1e-4)
    assert latest["guide/roi/r"] == pytest.approx(2 * sum_box / sum_cls, rel=1e-4)
    assert latest["roi_head/num_fg_samples"] == num_foreground / 2
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.isfinite().all(), name
        assert "roi_heads" not in name or gradient.abs().max() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_objects_gives_zeros_for_every_parameter(kind):
    losses, latest, gradients = train_step(model_of(kind), rcnn_batch(0, 0, kind=kind))
    assert losses.keys() == BOTH | OWN_LOSSES[kind]
    assert all(x.item() == 0 for x in losses.values())
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.abs().max() == 0, name
    assert latest["guide/roi/empty_batches"] == 1 and latest["roi_head/num_fg_samples"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_of_a_batch_may_be_empty(kind):
    losses, latest, gradients = train_step(model_of(kind), rcnn_batch(4, 0, kind=kind))
    assert all(0 < x.item() < math.inf for x in losses.values())
    assert losses["loss_cls"].item() == pytest.approx(2 * losses["loss_box_reg"].item(), rel=1e-5)
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert latest["guide/roi/empty_batches"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast_trains_the_whole_detector(kind):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, latest, gradients = train_step(model_of(kind), rcnn_batch(3, 5, kind=kind))
    assert losses["loss_cls"].item() == pytest.approx(2 * losses["loss_box_reg"].item(), rel=1e-5)
    assert losses["loss_cls"].dtype == torch.float32
    assert 0 < latest["guide/roi/r"] < math.inf
    assert all(g is not None and g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_go_both_ways(kind):
    ours, stock = model_of(kind, seed=1), tiny_rcnn(kind, stock=True, seed=2)
    assert list(ours.state_dict()) == list(stock.state_dict())
    weights = {k: v.clone() for k, v in ours.state_dict().items()}
    stock.load_state_dict(weights, strict=True)
    other = tiny_rcnn(kind, stock=True, seed=3).state_dict()
    ours.load_state_dict(other, strict=True)
    for key, value in other.items():
        assert torch.equal(ours.state_dict()[key], value)
        assert torch.equal(stock.state_dict()[key], weights[key])


def assert_same_detections(ours, stock, inputs):
    stock.load_state_dict(ours.state_dict())
    with torch.no_grad():
        for a, b in zip(ours.eval()(inputs), stock.eval()(inputs)):
            a, b = a["instances"], b["instances"]
            assert a.image_size == b.image_size and len(a) == len(b) > 0
            assert a.get_fields().keys() == b.get_fields().keys()
            for name, value in a.get_fields().items():
                other = b.get(name)
                value, other = (getattr(x, "tensor", x) for x in (value, other))
                assert torch.equal(value, other), name


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_bit_equal_to_stock(kind, agnostic):
    ours = model_of(kind, agnostic=agnostic, seed=1)
    with torch.no_grad():  # scores and boxes that differ from one another
        for layer in (
            ours.roi_heads.box_predictor.cls_score,
            ours.roi_heads.box_predictor.bbox_pred,
        ):
            layer.weight.normal_(std=0.5)
    inputs = rcnn_batch(2, 0)
    inputs[1].update(height=50, width=200)
    assert_same_detections(ours, tiny_rcnn(kind, stock=True, agnostic=agnostic, seed=2), inputs)


class TestMaxMaskPositives:
    def _seen(self, monkeypatch, seed=0, nums=(4, 6), **kwargs):
        """(instances that the mask head sees, foreground of each image, losses) of a step."""
        model = model_of("mask", **kwargs)
        masked = spy(monkeypatch, model.roi_heads.mask_head, "forward")
        lossed = spy(monkeypatch, model.roi_heads.box_predictor, "losses")
        torch.manual_seed(seed)
        losses, _, _ = train_step(model, rcnn_batch(*nums, kind="mask"))
        ((pooled, instances), _) = masked[0]
        assert len(pooled) == sum(map(len, instances))
        foreground = [p[p.gt_classes < 3] for p in lossed[0][0][1]]
        return instances, foreground, losses

    def test_it_is_off_by_default_and_the_mask_head_sees_all_foreground(self, monkeypatch):
        seen, foreground, _ = self._seen(monkeypatch)
        for a, b in zip(seen, foreground):
            assert torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor)

    @pytest.mark.parametrize("limit", [1, 3, 5])
    def test_it_limits_each_image(self, monkeypatch, limit):
        seen, foreground, _ = self._seen(monkeypatch, max_mask_positives=limit, nums=(4, 6, 0))
        assert [len(x) for x in seen] == [min(limit, len(x)) for x in foreground]
        assert len(foreground[0]) >= 4 and len(foreground[2]) == 0
        for a, b in zip(seen, foreground):
            drawn, given = (x.proposal_boxes.tensor.tolist() for x in (a, b))
            masks = a.gt_masks.tensor if drawn else []
            for box, k, mask in zip(drawn, a.gt_classes.tolist(), masks):
                i = given.index(box)
                assert b.gt_classes[i].item() == k and torch.equal(b.gt_masks.tensor[i], mask)

    def test_the_choice_is_random_and_every_positive_has_its_turn(self, monkeypatch):
        drawn = set()
        for seed in range(30):
            seen, foreground, _ = self._seen(monkeypatch, seed, nums=(4,), max_mask_positives=3)
            boxes = [tuple(x) for x in seen[0].proposal_boxes.tensor.tolist()]
            assert len(set(boxes)) == 3  # without replacement
            drawn.update(boxes)
        assert drawn == {tuple(x) for x in foreground[0].proposal_boxes.tensor.tolist()}

    def test_the_box_losses_are_the_same(self, monkeypatch):
        _, _, off = self._seen(monkeypatch)
        _, _, on = self._seen(monkeypatch, max_mask_positives=2)
        for key in BOTH:
            assert torch.equal(off[key], on[key]), key
        assert on["loss_mask"] > 0 and on["loss_mask"] != off["loss_mask"]

    @pytest.mark.parametrize(("limit", "takes"), [(None, False), (10**6, False), (2, True)])
    def test_random_numbers_are_taken_only_where_something_is_drawn(self, limit, takes):
        model = model_of("mask", max_mask_positives=limit)
        before = torch.get_rng_state()
        train_step(model, rcnn_batch(4, 6, kind="mask"))
        assert torch.equal(torch.get_rng_state(), before) != takes

    @pytest.mark.parametrize("limit", [0, -3, 2.5, "7", True])
    def test_an_impossible_limit_is_refused(self, limit):
        with pytest.raises(BadInput, match=f"max_mask_positives={limit!r}.*None"):
            model_of("mask", max_mask_positives=limit)

    def test_without_a_mask_head_it_does_nothing(self):
        losses, _, _ = train_step(model_of("faster", max_mask_positives=1), rcnn_batch(4, 6))
        assert losses.keys() == BOTH

    def test_at_test_time_it_does_nothing(self):
        ours = model_of("mask", max_mask_positives=1)
        assert_same_detections(ours, tiny_rcnn("mask", stock=True), rcnn_batch(2, 1))


@pytest.mark.parametrize("kind", ["faster", "c4"])
def test_a_stock_box_predictor_is_refused(kind):
    predictor = FastRCNNOutputLayers(
        ShapeSpec(channels=16), box2box_transform=Box2BoxTransform(weights=WEIGHTS), num_classes=3
    )
    with pytest.raises(BadInput, match="is FastRCNNOutputLayers.*SamplingFreeFastRCNNOutputLayers"):
        model_of(kind, box_predictor=predictor)


class TestConfigNode:
    """Detectron2's YAML configs, with a narrow ResNet-18."""

    def _cfg(self, name, stock=False, **sampling_free):
        cfg = get_cfg()
        if not stock:
            add_sampling_free_config(cfg)
        cfg.merge_from_file(model_zoo.get_config_file(name))
        model = cfg.MODEL
        model.DEVICE, model.WEIGHTS = "cpu", ""
        model.RESNETS.DEPTH, model.RESNETS.RES2_OUT_CHANNELS = 18, 64
        model.RESNETS.WIDTH_PER_GROUP = 2
        model.FPN.OUT_CHANNELS, model.ROI_BOX_HEAD.FC_DIM = 8, 16
        model.ROI_MASK_HEAD.CONV_DIM = model.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 4
        model.ROI_MASK_HEAD.NUM_CONV = 1
        model.ROI_KEYPOINT_HEAD.CONV_DIMS = (4,)
        model.ROI_HEADS.NUM_CLASSES = 3
        if not stock:
            c4 = "C4" in name
            model.PROPOSAL_GENERATOR.NAME = "SamplingFreeRPN"
            kind = "Res5" if c4 else "Standard"
            model.ROI_HEADS.NAME = f"SamplingFree{kind}ROIHeads"
            for key, value in sampling_free.items():
                model.SAMPLING_FREE[key] = value
        return cfg

    FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
    MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
    KEYPOINT = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml"
    C4 = "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml"

    @pytest.mark.parametrize("name", [FASTER, MASK, KEYPOINT, C4])
    def test_it_builds_the_classes_with_stocks_parameters(self, name):
        model = build_model(self._cfg(name))
        heads = SamplingFreeRes5ROIHeads if name == self.C4 else SamplingFreeStandardROIHeads
        assert type(model.proposal_generator) is SamplingFreeRPN
        assert type(model.roi_heads) is heads
        predictor = model.roi_heads.box_predictor
        assert type(predictor) is SamplingFreeFastRCNNOutputLayers
        stock = build_model(self._cfg(name, stock=True))
        assert isinstance(stock.roi_heads, (StandardROIHeads, Res5ROIHeads))
        shapes = {k: v.shape for k, v in model.state_dict().items()}
        assert shapes == {k: v.shape for k, v in stock.state_dict().items()}
        assert model.proposal_generator.prior == "auto" and predictor.softmax_prior is None
        assert predictor.guide.key == model.proposal_generator.guide.key == "iteration"
        theirs = stock.roi_heads.box_predictor
        for key, value in vars(theirs).items():
            if isinstance(value, (int, float, str, dict)) and not key.startswith("_"):
                if key != "training":
                    assert vars(predictor)[key] == value, key
        assert predictor.box2box_transform.weights == theirs.box2box_transform.weights

    def test_the_keys_of_the_project_are_honoured(self):
        keys = {"PRIOR": 0.003, "GUIDE": 0.5, "SOFTMAX_PRIOR": 0.02, "MAX_MASK_POSITIVES": 7}
        model = build_model(self._cfg(self.MASK, **keys))
        rpn, heads = model.proposal_generator, model.roi_heads
        assert rpn.prior == 0.003 and rpn.guide.key == heads.box_predictor.guide.key == 0.5
        assert heads.max_mask_positives == 7 and heads.box_predictor.softmax_prior == 0.02
        scores = rpn.rpn_head.objectness_logits.bias.sigmoid()
        assert scores.tolist() == pytest.approx([0.003] * 3, rel=1e-5)
        scores = heads.box_predictor.cls_score.bias.softmax(dim=0)
        assert scores.tolist() == pytest.approx([0.02] * 3 + [0.94], rel=1e-5)

    def test_c4_says_that_it_knows_no_limit_of_masks(self):
        with pytest.raises(BadInput, match="MAX_MASK_POSITIVES: Res5ROIHeads"):
            build_model(self._cfg(self.C4, MAX_MASK_POSITIVES=7))

    def test_from_the_command_line_they_may_be_numbers(self):
        cfg = self._cfg(self.FASTER)
        cfg.merge_from_list(["MODEL.SAMPLING_FREE.SOFTMAX_PRIOR", "0.1", "MODEL.MASK_ON", "False"])
        assert build_model(cfg).roi_heads.box_predictor.softmax_prior == 0.1

    @pytest.mark.parametrize("name", [FASTER, MASK, C4])
    def test_it_trains_a_step(self, name):
        cfg = self._cfg(name, PRIOR=0.01)
        cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 0.25
        cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
        kind = "faster" if name == self.FASTER else "mask"
        torch.manual_seed(0)
        losses, latest, gradients = train_step(build_model(cfg), rcnn_batch(3, 5, kind=kind))
        assert losses.keys() == BOTH | OWN_LOSSES[kind]
        twice = 2 * losses["loss_box_reg"].item()
        assert losses["loss_cls"].item() == pytest.approx(twice, rel=1e-5) and twice > 0
        trained = {k: g for k, g in gradients.items() if "roi_heads" in k}
        assert all(g is not None and g.isfinite().all() for g in trained.values())
