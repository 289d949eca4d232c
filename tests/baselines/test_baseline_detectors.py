"""OHEM and GHM-C in real detectors: losses against loops, gradients, the batches that go wrong."""

import contextlib
import math

import pytest
import torch
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from helpers.baseline_detectors_cases import BOX_LOSSES
from helpers.literal_ghm import Literal
from helpers.literal_ohem import hardest_by_loops
from helpers.tiny import batch, stock_retinanet, tiny_retinanet, train_step
from helpers.tiny_detectors import rcnn, rcnn_batch
from sampling_free import (
    GHMRPN,
    OHEMRPN,
    GHMRetinaNet,
    OHEMRetinaNet,
    OHEMStandardROIHeads,
)

MODELS = {
    "OHEMRetinaNet": lambda **kw: tiny_retinanet(OHEMRetinaNet, **kw),
    "GHMRetinaNet": lambda **kw: tiny_retinanet(GHMRetinaNet, **kw),
    "OHEMRPN": lambda **kw: rcnn(OHEMRPN, **kw),
    "GHMRPN": lambda **kw: rcnn(GHMRPN, **kw),
    "OHEMStandardROIHeads": lambda **kw: rcnn(roi_class=OHEMStandardROIHeads, **kw),
    "both": lambda **kw: rcnn(OHEMRPN, OHEMStandardROIHeads, **kw),
}


GHM_KEYS = {"GHMRetinaNet": ["ghm.counts"], "GHMRPN": ["proposal_generator.ghm.counts"]}


def label_with(model, matcher):
    """Another matcher for the anchors."""
    (
        model if hasattr(model, "anchor_matcher") else model.proposal_generator
    ).anchor_matcher = matcher


NO_POSITIVE = Matcher([0.998, 0.999], [0, -1, 1], allow_low_quality_matches=False)


IGNORED = Matcher([0.4, 0.5], [-1, -1, -1], allow_low_quality_matches=False)


@pytest.mark.parametrize(
    ("num_classes", "autocast"), [(1, None), (3, torch.bfloat16), (3, torch.float16)]
)
@pytest.mark.parametrize("name", MODELS)
def test_a_step_trains_the_heads(name, num_classes, autocast):
    model = MODELS[name](num_classes=num_classes)
    context = torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext()
    inputs = rcnn_batch(3, 0, 5, num_classes=num_classes)
    model.train()
    with EventStorage(), context:
        losses = model(inputs)
    sum(losses.values()).backward()
    assert all(math.isfinite(x.item()) and x > 0 for x in losses.values()), losses
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        if "head" in key:  # a level without a hard anchor learns nothing
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", GHM_KEYS)  # rounding changes which samples are the hardest
def test_autocast_gives_nearly_the_same_losses(name):
    inputs = rcnn_batch(3, 5)
    torch.manual_seed(0)
    full, _, _ = train_step(MODELS[name](), inputs)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, _, _ = train_step(MODELS[name](), inputs)
    key = "loss_cls" if name == "GHMRetinaNet" else "loss_rpn_cls"
    assert half[key].dtype == torch.float32
    assert half[key].item() == pytest.approx(full[key].item(), rel=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_images_without_objects_and_batches_without_a_positive_train_the_background(name):
    # The RoI heads get the ground truth as proposals, so only the anchors are without a positive.
    for inputs, matcher in ((rcnn_batch(0, 0), None), (rcnn_batch(3, 2), NO_POSITIVE)):
        model = MODELS[name]()
        if matcher:
            label_with(model, matcher)
        losses, latest, gradients = train_step(model, inputs)
        assert all(x.isfinite() for x in losses.values())
        assert all(g is not None and g.isfinite().all() for g in gradients.values())
        dense = "RetinaNet" in name
        assert losses["loss_cls" if dense else "loss_rpn_cls"] > 0
        assert losses["loss_box_reg" if dense else "loss_rpn_loc"] == 0
        assert latest["num_pos_anchors" if dense else "rpn/num_pos_anchors"] == 0


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_ignored_anchors_gives_zeros_that_are_connected(name):
    model = MODELS[name]()
    label_with(model, IGNORED)
    losses, _, gradients = train_step(model, rcnn_batch(3, 2))
    dense = "RetinaNet" in name
    for key in ("loss_cls", "loss_box_reg") if dense else ("loss_rpn_cls", "loss_rpn_loc"):
        assert losses[key] == 0
    heads = ("head",) if dense else ("proposal_generator",)
    for key, gradient in gradients.items():
        assert gradient is not None, key
        if key.startswith(heads):
            assert gradient.abs().max() == 0, key


@pytest.mark.parametrize("name", MODELS)
def test_parameters_have_the_keys_of_detectron2s_class(name):
    ours = MODELS[name](seed=1)
    stock = stock_retinanet(seed=2) if "RetinaNet" in name else rcnn(seed=2)
    mine, theirs = ours.state_dict(), stock.state_dict()
    assert sorted(set(mine) - set(theirs)) == GHM_KEYS.get(name, [])
    assert set(theirs) <= set(mine)
    ours.load_state_dict(theirs, strict=True)
    assert all(torch.equal(ours.state_dict()[k], v) for k, v in theirs.items())


@pytest.mark.parametrize("name", MODELS)
def test_inference_is_detectron2s(name):
    ours = MODELS[name](seed=1).eval()
    stock = (stock_retinanet(seed=2) if "RetinaNet" in name else rcnn(seed=2)).eval()
    ours.load_state_dict(stock.state_dict())
    inputs = [{"image": x["image"]} for x in batch(2)]
    with torch.no_grad():
        a, b = (m(inputs)[0]["instances"] for m in (ours, stock))
    assert torch.equal(a.scores, b.scores) and torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)


def made_up(model, inputs, num_classes=None, seed=0):
    """Arguments of ``losses`` with random predictions that are leaves of the graph.

    Args:
        num_classes (int): None for an RPN, whose logits have no such dimension.
    """
    model.train()
    generator = torch.Generator().manual_seed(seed)
    images = model.preprocess_image(inputs)
    head = model if num_classes else model.proposal_generator
    names = model.head_in_features if num_classes else head.in_features
    features = model.backbone(images.tensor)
    anchors = head.anchor_generator([features[f] for f in names])
    instances = [x["instances"] for x in inputs]
    label = head.label_anchors if num_classes else head.label_and_sample_anchors
    labels, boxes = label(anchors, instances)
    shape = (num_classes,) if num_classes else ()
    logits, deltas = (
        [scale * torch.randn(len(inputs), len(x), *last, generator=generator) for x in anchors]
        for last, scale in ((shape, 2), ((4,), 0.5))
    )
    for x in logits + deltas:
        x.requires_grad_()
    return anchors, logits, labels, deltas, boxes


def loss_of_each(model, anchors, logits, labels, deltas, boxes, box_loss, num_classes):
    """(R,) of one image: BCE summed over classes plus box loss, one anchor at a time."""
    losses = torch.zeros(len(labels))
    for i, label in enumerate(labels.tolist()):
        if label < 0:
            continue
        target = F.one_hot(torch.tensor(label), num_classes + 1)[:num_classes].double()
        bce = F.binary_cross_entropy_with_logits(logits[i].double(), target, reduction="sum")
        losses[i] = bce
        if label < num_classes:
            losses[i] += _dense_box_regression_loss(
                [Boxes(anchors[i : i + 1])],
                model.box2box_transform,
                [deltas[None, i : i + 1]],
                [boxes[i : i + 1]],
                torch.ones(1, 1, dtype=torch.bool),
                *box_loss,
            )
    return losses


def chosen_by_loops(head, arguments, num_classes, num, nms_thresh, box_loss):
    """For each image the indices of its hardest anchors, and the loss of each anchor."""
    anchors, logits, labels, deltas, boxes = arguments
    anchors = Boxes.cat(anchors).tensor
    chosen, each = [], []
    with torch.no_grad():
        logits, deltas = torch.cat(logits, dim=1), torch.cat(deltas, dim=1)
        for i, labels_i in enumerate(labels):
            parts = (logits[i], labels_i, deltas[i], boxes[i])
            each.append(loss_of_each(head, anchors, *parts, box_loss, num_classes))
            valid = (labels_i >= 0).nonzero().squeeze(1)
            best = hardest_by_loops(each[-1][valid], anchors[valid], num, nms_thresh)
            chosen.append(valid[best].tolist())
    return chosen, each


def rows_with_gradient(levels):
    """For each image the anchors whose predictions have a gradient."""
    gradients = torch.cat(
        [x.grad.flatten(2) if x.dim() > 2 else x.grad[..., None] for x in levels], 1
    )
    return [x.abs().sum(dim=1).nonzero().squeeze(1).tolist() for x in gradients]


@pytest.mark.parametrize(("box_loss", "num_classes"), list(zip(BOX_LOSSES, (3, 1, 3))))
def test_ohem_of_a_retinanet_is_the_mean_over_the_hardest_anchors(box_loss, num_classes):
    kwargs = {"box_reg_loss_type": box_loss[0], "smooth_l1_beta": box_loss[1]}
    model = tiny_retinanet(OHEMRetinaNet, num_classes, hard_per_image=20, **kwargs)
    inputs = batch(3, 0, 5, num_classes=num_classes)
    arguments = made_up(model, inputs, num_classes)
    chosen, each = chosen_by_loops(model, arguments, num_classes, 20, 0.5, box_loss)
    with EventStorage() as storage:
        losses = model.losses(*arguments)
        num_pos = storage.latest()["num_pos_anchors"][0]
    expected = sum(each[i][rows].sum() for i, rows in enumerate(chosen))
    num = sum(map(len, chosen))
    assert num == 60
    assert sum(losses.values()).item() == pytest.approx(expected.item() / num, rel=1e-4)
    foreground = [
        [j for j in rows if arguments[2][i][j] < num_classes] for i, rows in enumerate(chosen)
    ]
    assert num_pos == sum(map(len, foreground)) / 3
    assert 0 < sum(map(len, foreground)) < num
    sum(losses.values()).backward()
    assert rows_with_gradient(arguments[1]) == [sorted(x) for x in chosen]
    assert rows_with_gradient(arguments[3]) == [sorted(x) for x in foreground]


def test_ohem_of_all_anchors_is_the_mean_of_bce():
    # With an IoU limit of 1 nothing is suppressed.
    model = tiny_retinanet(OHEMRetinaNet, hard_per_image=10**6, hard_nms_thresh=1.0)
    stock = stock_retinanet(focal_loss_alpha=-1, focal_loss_gamma=0.0)
    arguments = made_up(model, batch(3, 5), 3)
    with EventStorage():
        ours, theirs = model.losses(*arguments), stock.losses(*arguments)
    num_valid = sum((x >= 0).sum() for x in arguments[2])
    for key, value in ours.items():
        expected = theirs[key] * stock.loss_normalizer / num_valid
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("box_loss", "weight"),
    [(BOX_LOSSES[0], {"loss_rpn_cls": 0.5, "loss_rpn_loc": 3.0}), (BOX_LOSSES[2], 1.0)],
)
def test_ohem_of_an_rpn_is_detectron2s_loss_of_the_hardest_anchors(box_loss, weight):
    rpn = {"box_reg_loss_type": box_loss[0], "loss_weight": weight, "batch_size_per_image": 24}
    model = rcnn(OHEMRPN, rpn=rpn)
    arguments = made_up(model, batch(3, 0, 5))
    head, (anchors, logits, labels, deltas, boxes) = model.proposal_generator, arguments
    assert sum((x >= 0).sum() for x in labels) > 3 * 24  # nothing sampled yet
    one_class = [torch.where(x < 0, x, 1 - x) for x in labels]
    weights = weight if isinstance(weight, dict) else {}
    cls, loc = (weights.get(f"loss_rpn_{x}", 1.0) for x in ("cls", "loc"))
    parts = (anchors, [x.unsqueeze(2) for x in logits], one_class, deltas, boxes)
    _, each = chosen_by_loops(head, parts, 1, 24, 0.7, box_loss)
    chosen, sampled = [], []
    all_anchors, all_logits = Boxes.cat(anchors).tensor, torch.cat(logits, dim=1).detach()
    for i, labels_i in enumerate(labels):
        bce = F.binary_cross_entropy_with_logits(
            all_logits[i], (labels_i == 1).float(), reduction="none"
        )
        weighted = cls * bce + loc * (each[i] - bce)
        valid = (labels_i >= 0).nonzero().squeeze(1)
        best = hardest_by_loops(weighted[valid], all_anchors[valid], 24, 0.7)
        chosen.append(sorted(valid[best].tolist()))
        sampled.append(torch.full_like(labels_i, -1))
        sampled[i][chosen[i]] = labels_i[chosen[i]]
    with EventStorage() as storage:
        losses = head.losses(*arguments)
        latest = {k: v for k, (v, _) in storage.latest().items()}
        expected = RPN.losses(head, anchors, logits, sampled, deltas, boxes)
    assert losses.keys() == expected.keys()
    for key, value in losses.items():
        torch.testing.assert_close(value, expected[key])
    assert latest["rpn/num_pos_anchors"] + latest["rpn/num_neg_anchors"] == 24
    sum(losses.values()).backward()
    assert rows_with_gradient(logits) == chosen


def test_ghm_of_a_retinanet_is_the_literal_loss_and_detectron2s_box_loss():
    model, stock, literal = tiny_retinanet(GHMRetinaNet), stock_retinanet(), Literal()
    for seed in range(2):  # the second with a history
        arguments = made_up(model, batch(3, 0, 5, seed=seed), 3, seed)
        with EventStorage() as storage:
            ours = model.losses(*arguments)
            num_pos = storage.latest()["num_pos_anchors"]
            theirs = stock.losses(*arguments)
            assert num_pos == storage.latest()["num_pos_anchors"]
        logits = torch.cat([x.detach() for x in arguments[1]], dim=1).flatten(0, 1)
        expected = literal(logits, torch.cat(arguments[2]))
        assert ours["loss_cls"].item() == pytest.approx(expected, rel=1e-4)
        assert ours["loss_box_reg"].item() == theirs["loss_box_reg"].item()
        assert model.loss_normalizer == stock.loss_normalizer
    ours["loss_cls"].backward()
    valid = [(x >= 0).nonzero().squeeze(1).tolist() for x in arguments[2]]
    assert rows_with_gradient(arguments[1]) == valid


def test_ghm_of_an_rpn_is_the_literal_loss_and_the_mean_box_loss():
    weight = {"loss_rpn_cls": 0.5, "loss_rpn_loc": 3.0}
    model = rcnn(GHMRPN, rpn={"loss_weight": weight})
    head, arguments = model.proposal_generator, made_up(model, batch(3, 0, 5))
    anchors, logits, labels, deltas, boxes = arguments
    with EventStorage() as storage:
        losses = head.losses(*arguments)
        latest = {k: v for k, (v, _) in storage.latest().items()}
        stock = RPN.losses(_with(head, batch_size_per_image=1), *arguments)
    flat = torch.cat([x.detach() for x in logits], dim=1).flatten()[:, None]
    one_class = torch.cat([torch.where(x < 0, x, 1 - x) for x in labels])
    expected = 0.5 * Literal()(flat, one_class)
    assert losses["loss_rpn_cls"].item() == pytest.approx(expected, rel=1e-4)
    num_foreground = sum((x == 1).sum().item() for x in labels)
    mean = 3 * stock["loss_rpn_loc"].item() / num_foreground  # Detectron2's over 3 images
    assert losses["loss_rpn_loc"].item() == pytest.approx(mean, rel=1e-5)
    assert latest["rpn/num_pos_anchors"] == num_foreground / 3
    assert latest["rpn/num_neg_anchors"] == sum((x == 0).sum().item() for x in labels) / 3


def _with(module, **attributes):
    for key, value in attributes.items():
        setattr(module, key, value)
    return module
