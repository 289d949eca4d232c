import copy
import math

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, ImageList, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from helpers.tiny import WIDTH, anchor_order, batch
from helpers.tiny_detectors import tiny_rcnn
from sampling_free.utils.errors import BadInput

KEYS = ["loss_rpn_cls", "loss_rpn_loc"]
EVERYTHING = 10**6  # anchors sampled by stock of each image: all of them


class Case:
    """An RPN, ours or stock's, with a batch and the features of the backbone for it."""

    def __init__(self, inputs=None, *, stock=False, kind="faster", seed=0, **rpn):
        if not stock:
            rpn = {"prior": 0.01, **rpn}
        self.model = tiny_rcnn(kind, stock=stock, seed=seed, rpn=rpn)
        self.rpn = self.model.proposal_generator
        inputs = batch(3, 5) if inputs is None else inputs
        self.images = ImageList.from_tensors([i["image"].float() for i in inputs], 32)
        self.instances = [i["instances"] for i in inputs]
        generator = torch.Generator().manual_seed(7)
        self.features = {
            f: torch.rand(
                (len(inputs), WIDTH, *(-(-n // s) for n in self.images.tensor.shape[2:])),
                generator=generator,
            )
            for f, s in zip(self.rpn.in_features, self.rpn.anchor_generator.strides)
        }
        with torch.no_grad():  # so that the predictions differ
            for layer in (self.rpn.rpn_head.objectness_logits, self.rpn.rpn_head.anchor_deltas):
                layer.weight.mul_(30)

    def anchors(self):
        return self.rpn.anchor_generator([self.features[f] for f in self.rpn.in_features])

    def train_step(self):
        """(losses, event storage's latest numbers, gradients by parameter, proposals)."""
        self.rpn.train()
        with EventStorage() as storage:
            proposals, losses = self.rpn(self.images, self.features, self.instances)
            latest = {k: v for k, (v, _) in storage.latest().items()}
        sum(losses.values()).backward()
        gradients = {name: p.grad for name, p in self.rpn.named_parameters()}
        return {k: v.detach() for k, v in losses.items()}, latest, gradients, proposals

    def labels(self):
        """(N, R) by the matcher and the image's border, and (N, R, 4) boxes; nothing sampled."""
        anchors = torch.cat([a.tensor for a in self.anchors()])
        labels, boxes = [], []
        for instances in self.instances:
            overlaps = pairwise_iou(instances.gt_boxes, Boxes(anchors))
            matches, found = self.rpn.anchor_matcher(overlaps)
            if self.rpn.anchor_boundary_thresh >= 0:
                height, width = instances.image_size
                for r, (x0, y0, x1, y1) in enumerate(anchors.tolist()):
                    t = self.rpn.anchor_boundary_thresh
                    if not (x0 >= -t and y0 >= -t and x1 < width + t and y1 < height + t):
                        found[r] = -1
            labels.append(found)
            empty = torch.zeros(len(anchors), 4)
            boxes.append(instances.gt_boxes.tensor[matches] if len(instances) else empty)
        return torch.stack(labels), torch.stack(boxes)

    def expected(self):
        """Classification and box loss per foreground anchor, unscaled, in float64."""
        with torch.no_grad():
            logits, deltas = self.rpn.rpn_head([self.features[f] for f in self.rpn.in_features])
            # Of each place all anchors, one after the other.
            x = torch.cat([anchor_order(o, 1) for o in logits], dim=1).squeeze(2)
            d = torch.cat([anchor_order(o, 4) for o in deltas], dim=1)
            anchors = torch.cat([a.tensor for a in self.anchors()])
            return _by_hand(anchors, x, d, *self.labels(), self.rpn)


def _by_hand(anchors, logits, deltas, labels, boxes, rpn):
    """(classification loss, box loss), each per foreground anchor, in float64; differentiable."""
    valid, foreground = labels != -1, labels == 1
    targets = foreground.double()[valid]
    cls = F.binary_cross_entropy_with_logits(logits.double()[valid], targets, reduction="sum")
    anchors = anchors.double().expand(len(labels), -1, -1)[foreground]
    boxes, deltas = boxes.double()[foreground], deltas.double()[foreground]
    sizes, centers = anchors[:, 2:] - anchors[:, :2], (anchors[:, 2:] + anchors[:, :2]) / 2
    if rpn.box_reg_loss_type == "giou":
        center = centers + deltas[:, :2] * sizes
        half = deltas[:, 2:].exp() * sizes / 2
        box = (1 - _giou(torch.cat([center - half, center + half], 1), boxes)).sum()
    else:
        box_sizes, box_centers = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
        target = torch.cat([(box_centers - centers) / sizes, (box_sizes / sizes).log()], dim=1)
        if rpn.smooth_l1_beta:
            box = nn.SmoothL1Loss(reduction="sum", beta=rpn.smooth_l1_beta)(deltas, target)
        else:
            box = (deltas - target).abs().sum()
    return cls / foreground.sum(), box / foreground.sum()


def _giou(a, b):
    def area(low, high):
        return (high - low).clamp(min=0).prod(1)

    intersection = area(torch.maximum(a, b)[:, :2], torch.minimum(a, b)[:, 2:])
    union = area(a[:, :2], a[:, 2:]) + area(b[:, :2], b[:, 2:]) - intersection
    hull = area(torch.minimum(a, b)[:, :2], torch.maximum(a, b)[:, 2:])
    return intersection / union - 1 + union / hull


INPUTS = {
    "some objects": lambda: batch(3, 5),
    "an empty image": lambda: batch(4, 0, 2),
    "one image": lambda: batch(6, size=(61, 83)),
}


# --- values ---------------------------------------------------------------------------------------


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


def test_so_they_are_on_a_single_level():
    inputs = batch(3, 5)
    _check_values(Case(inputs, kind="c4"), inputs)


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


# --- guide ----------------------------------------------------------------------------------------


def _losses(rpn, case, logits, deltas):
    """(losses, event storage's latest numbers) of ``rpn.losses`` for given predictions."""
    anchors = case.anchors()
    sizes = [len(a) for a in anchors]
    labels, boxes = case.labels()
    with EventStorage() as storage:
        losses = rpn.losses(
            anchors,
            list(logits.split(sizes, dim=1)),
            list(labels),
            list(deltas.split(sizes, dim=1)),
            list(boxes),
        )
        return losses, {k: v for k, (v, _) in storage.latest().items()}


def _predictions(case, dtype=torch.float32, offset=0.0):
    generator = torch.Generator().manual_seed(3)
    num_images, num = case.labels()[0].shape
    logits = torch.randn((num_images, num), generator=generator) * 2 + offset
    deltas = torch.randn((num_images, num, 4), generator=generator)
    return logits.to(dtype).requires_grad_(), deltas.to(dtype).requires_grad_()


@pytest.mark.parametrize("guide", ["iteration", 0.7])
def test_gradients_are_those_of_the_losses_by_hand_and_none_flows_through_the_guide(guide):
    case = Case(guide=guide)
    predictions = _predictions(case)
    losses, latest = _losses(case.rpn, case, *predictions)
    anchors = torch.cat([a.tensor for a in case.anchors()])
    cls, box = _by_hand(anchors, *predictions, *case.labels(), case.rpn)
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


def test_a_weight_that_is_not_given_is_one():
    plain = Case(guide=1.0).train_step()[0]
    weighted = Case(guide=1.0, loss_weight={"loss_rpn_loc": 0.25}).train_step()[0]
    assert weighted["loss_rpn_cls"].item() == plain["loss_rpn_cls"].item()
    assert weighted["loss_rpn_loc"].item() == pytest.approx(0.25 * plain["loss_rpn_loc"].item())
    both = Case(guide=1.0, loss_weight=2.0).train_step()[0]
    for key in KEYS:
        assert both[key].item() == pytest.approx(2 * plain[key].item())


# --- what is stock's ------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [-1.0, 0.0])
@pytest.mark.parametrize("name", INPUTS)
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


@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
@pytest.mark.parametrize("name", INPUTS)
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


@pytest.mark.parametrize("kind", ["faster", "c4"])
def test_state_dicts_go_both_ways(kind):
    ours, stock = Case(kind=kind, seed=1).rpn, Case(kind=kind, stock=True, seed=2).rpn
    assert list(ours.state_dict()) == list(stock.state_dict())
    stock.load_state_dict(ours.state_dict(), strict=True)
    bias = stock.rpn_head.objectness_logits.bias
    assert bias.sigmoid().tolist() == pytest.approx([0.01] * len(bias), rel=1e-5)
    other = Case(kind=kind, stock=True, seed=3).rpn
    assert not ours.head_was_loaded
    ours.load_state_dict(other.state_dict(), strict=True)
    assert ours.head_was_loaded
    for key, value in other.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)


# --- batches with little in them ------------------------------------------------------------------


@pytest.mark.parametrize("guide", ["iteration", 1.0])
@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
@pytest.mark.parametrize(
    ("nums", "matcher"),
    [
        ((0, 0), Matcher([0.3, 0.7], [0, -1, 1], True)),
        ((3, 2), Matcher([0.998, 0.999], [0, -1, 1], False)),
        ((3, 2), Matcher([0.3, 0.7], [-1, -1, -1], False)),
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


@pytest.mark.parametrize("prior", [1e-7, 1e-5, 0.3])
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


def test_background_at_a_tiny_prior_keeps_its_gradient():
    case = Case()
    logits, deltas = _predictions(case)
    logits = torch.full_like(logits, math.log(1e-7)).requires_grad_()
    losses, latest = _losses(case.rpn, case, logits, deltas)
    losses["loss_rpn_cls"].backward()
    labels, _ = case.labels()
    unit = latest["guide/rpn/r"] / (labels == 1).sum().item()
    assert unit > 0
    for label, expected in [(-1, 0), (0, unit * 1e-7), (1, -unit)]:
        gradient = logits.grad[labels == label]
        torch.testing.assert_close(gradient, torch.full_like(gradient, expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("object_logit", "background_logit"), [(12.0, -18.0), (16.0, -22.0)])
def test_confident_predictions_keep_their_loss_and_their_guide(object_logit, background_logit):
    case = Case()
    labels, _ = case.labels()
    noise, deltas = _predictions(case)
    logits = noise / 2 + torch.where(labels == 1, object_logit, background_logit)
    anchors = torch.cat([a.tensor for a in case.anchors()])
    cls, box = _by_hand(anchors, logits, deltas, *case.labels(), case.rpn)
    _, latest = _losses(case.rpn, case, logits, deltas)
    assert latest["guide/rpn/loss_cls_raw"] == pytest.approx(cls.item(), rel=1e-3)
    assert latest["guide/rpn/r"] == pytest.approx((box / cls).item(), rel=1e-3)


# --- mixed precision ------------------------------------------------------------------------------


def test_bfloat16_autocast_gives_nearly_the_same_losses():
    full, full_latest, full_gradients, _ = Case(prior=1e-4).train_step()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, half_latest, half_gradients, _ = Case(prior=1e-4).train_step()
    for key in KEYS:
        assert half[key].dtype == torch.float32
        assert half[key].item() == pytest.approx(full[key].item(), rel=0.02)
        assert half[key].item() != full[key].item()
    assert half_latest["guide/rpn/r"] == pytest.approx(full_latest["guide/rpn/r"], rel=0.02)
    for name, gradient in full_gradients.items():
        difference = (half_gradients[name] - gradient).norm() / gradient.norm()
        assert difference < 0.2, name


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
    predictions = _predictions(case, torch.float16, offset=-14)
    anchors = torch.cat([a.tensor for a in case.anchors()])
    labels, boxes = case.labels()
    sides = (boxes[..., 2:] - boxes[..., :2])[labels == 1]
    assert sides.max() > 256
    cls, box = _by_hand(anchors, *predictions, labels, boxes, case.rpn)
    losses, latest = _losses(case.rpn, case, *predictions)
    assert losses["loss_rpn_loc"].item() == pytest.approx(box.item(), rel=1e-4)
    assert losses["loss_rpn_cls"].item() == pytest.approx(box.item(), rel=1e-4)
    assert latest["guide/rpn/loss_cls_raw"] == pytest.approx(cls.item(), rel=1e-5)
    sum(losses.values()).backward()
    for x in predictions:
        assert x.grad.isfinite().all() and x.grad.any()


# --- settings -------------------------------------------------------------------------------------


def test_auto_refuses_to_train_and_still_proposes():
    case = Case(prior="auto")
    with pytest.raises(BadInput, match="model.proposal_generator.prior is still 'auto'"):
        case.train_step()
    case.rpn.eval()
    with torch.no_grad():
        proposals, losses = case.rpn(case.images, case.features)
    assert losses == {} and all(len(p) > 0 for p in proposals)


@pytest.mark.parametrize("prior", ["automatic", 0, 1.0, None])
def test_an_impossible_prior_is_refused(prior):
    with pytest.raises(BadInput, match="model.proposal_generator.prior=.*'auto'"):
        Case(prior=prior)


@pytest.mark.parametrize("guide", ["epoch", -1, None])
def test_an_unknown_guide_is_refused(guide):
    with pytest.raises(BadInput, match="guide=.*'iteration'"):
        Case(guide=guide)


@pytest.mark.parametrize("prior", ["auto", 0.01])
def test_a_head_without_bias_is_refused_by_its_layer(prior):
    head = tiny_rcnn(stock=True).proposal_generator.rpn_head
    head.objectness_logits = nn.Conv2d(WIDTH, 6, 1, bias=False)
    with pytest.raises(BadInput, match="StandardRPNHead has no parameter objectness_logits.bias"):
        Case(head=head, prior=prior)


def test_the_whole_detector_trains_with_both_of_its_guides():
    model = tiny_rcnn(rpn={"prior": 0.01}).train()
    with EventStorage() as storage:
        losses = model(batch(3, 5))
        latest = {k: v for k, (v, _) in storage.latest().items()}
    assert losses["loss_rpn_cls"].item() == pytest.approx(losses["loss_rpn_loc"].item(), rel=1e-5)
    assert latest["guide/rpn/r"] > 0 and latest["guide/roi/r"] > 0
    sum(losses.values()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
