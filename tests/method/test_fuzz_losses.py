"""Thousands of drawn labels and predictions through every loss: value and gradient are finite.

    N images   R samples of all levels   K classes   A anchors at each place

Detectron2's CIoU loss is left out: a predicted box that has lost its height makes it NaN.
"""

import contextlib
import math

import pytest
import torch
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from helpers.drawn_patterns import DTYPES, SIZE, Draw, largest_delta, leaves, smallest_side
from helpers.guided_detectors import GUIDES
from helpers.probed import with_rpn
from helpers.tiny import stock_retinanet, tiny_retinanet
from helpers.tiny_detectors import tiny_fcos, tiny_rcnn
from sampling_free import (
    ATSS,
    PAA,
    GHMRetinaNet,
    OHEMRetinaNet,
    SamplingFreeATSS,
    SamplingFreePAA,
    make_guide,
    sigmoid_bce_all,
)
from sampling_free.baselines.ghm import GHMC
from sampling_free.baselines.ohem import hard_examples
from sampling_free.baselines.roi_heads import proposal_losses
from sampling_free.baselines.rpn import GHMRPN, OHEMRPN
from sampling_free.method.classification_loss import (
    cross_entropy_gradient_norm,
    sigmoid_bce_gradient_norm,
)
from sampling_free.method.guided_loss import MAX_RATIO, guide_ratio, guided_losses
from sampling_free.method.guides import FrozenGuide

LEVELS = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]  # of an image of SIZE, at strides 8 to 128


def autocast(dtype):
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast("cpu", dtype=getattr(torch, dtype))


def require_finite(losses, predictions, what):
    """Of all loss terms, and of their gradient at the predictions."""
    values = {name: x.item() for name, x in losses.items()}
    assert all(math.isfinite(x) for x in values.values()), (what, values)
    gradients = torch.autograd.grad(sum(losses.values()), predictions, allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients), (what, values)


def ready(model):
    """In training, with a gradient for predictions alone."""
    return model.train().requires_grad_(False)


def restart(model):
    for module in model.modules():
        if isinstance(module, FrozenGuide):  # else r of a pattern before would be kept
            module.restart()


# Dense detectors ----------------------------------------------------------------------------------

POINTS = {"fcos": (), "atss": (SamplingFreeATSS,), "paa": (SamplingFreePAA,)}
RETINANETS = {
    "GHM": lambda k: tiny_retinanet(GHMRetinaNet, k),
    "OHEM": lambda k: tiny_retinanet(OHEMRetinaNet, k),
    "focal": lambda k: stock_retinanet(num_classes=k),
}
POINT_DETECTORS = {
    "atss focal": lambda k: tiny_fcos(ATSS, k),
    "paa focal": lambda k: tiny_fcos(PAA, k),
    "fcos centerness": lambda k: tiny_fcos(num_classes=k, prior=0.01, box_weight="centerness"),
}
for _guide in GUIDES:
    RETINANETS[f"retinanet {_guide}"] = lambda k, g=_guide: tiny_retinanet(
        num_classes=k, prior=0.01, guide=g
    )
    for _kind, _cls in POINTS.items():
        POINT_DETECTORS[f"{_kind} {_guide}"] = lambda k, g=_guide, c=_cls: tiny_fcos(
            *c, num_classes=k, prior=0.01, guide=g
        )
for _loss in ("giou", "diou"):
    RETINANETS[f"retinanet {_loss}"] = lambda k, x=_loss: tiny_retinanet(
        num_classes=k, prior=0.01, box_reg_loss_type=x
    )


def as_maps(rows, num_anchors):
    """Rows (N, R, D) of all levels as a head gives them, (N, A*D, Hi, Wi) for each level."""
    levels = rows.split([h * w * num_anchors for h, w in LEVELS], dim=1)
    return [
        x.reshape(len(x), h, w, -1).permute(0, 3, 1, 2).contiguous()
        for x, (h, w) in zip(levels, LEVELS)
    ]


def forward(model, draw, dtype, num_classes, labels, objects, num_anchors, num_qualities):
    """The losses from drawn predictions, and these."""
    shape = tuple(labels.shape)
    rows = [draw.logits(labels, num_classes), draw.deltas((*shape, 4), largest_delta(dtype))]
    if num_qualities:
        rows.append(draw.logits(torch.zeros(shape, dtype=torch.long), 1))
    predictions = [leaves(as_maps(x, num_anchors), dtype) for x in rows]
    features = [torch.zeros(len(labels), 8, *size) for size in LEVELS]
    restart(model)
    with EventStorage(), autocast(dtype):
        losses = model.forward_training(None, features, predictions, objects)
    return losses, sum(predictions, [])


@pytest.mark.parametrize("kind", RETINANETS)
def test_retinanets_with_any_labels(kind):
    models = {k: ready(RETINANETS[kind](k)) for k in (1, 3)}
    for i in range(80):
        draw = Draw(kind, i)
        k, num, dtype = draw.one(*models), draw.one(1, 2), draw.one(*DTYPES)
        num_anchors = models[k].anchor_generator.num_anchors[0]
        num_rows = num_anchors * sum(h * w for h, w in LEVELS)
        labels = draw.labels((num, num_rows), k)
        boxes = [draw.boxes(num_rows) for _ in range(num)]
        models[k].label_anchors = lambda *args, given=(list(labels), boxes): given
        found = forward(models[k], draw, dtype, k, labels, None, num_anchors, 0)
        require_finite(*found, (i, dtype))


@pytest.mark.parametrize("kind", POINT_DETECTORS)
def test_point_detectors_with_any_objects(kind):
    """Their assignment takes part: a target is only defined where it finds foreground."""
    models = {k: ready(POINT_DETECTORS[kind](k)) for k in (1, 3)}
    for i in range(60):
        draw = Draw(kind, i)
        k, dtype = draw.one(*models), draw.one(*DTYPES)
        objects = [draw.objects(k) for _ in range(draw.one(1, 2))]
        anchors = models[k].anchor_generator([torch.zeros(1, 8, *size) for size in LEVELS])
        labels = models[k].label_anchors(anchors, objects)[0]
        if "paa" in kind and draw.one(True, False):
            every = Boxes.cat(anchors)
            candidates = [models[k].candidate_objects(every, x.gt_boxes) for x in objects]
            labels = models[k].labels_and_boxes(candidates, objects)[0]
        found = forward(models[k], draw, dtype, k, torch.stack(labels), objects, 1, 1)
        require_finite(*found, (i, dtype))


# RPN ----------------------------------------------------------------------------------------------

RPNS = {
    "GHM": lambda: with_rpn(GHMRPN),
    "OHEM": lambda: with_rpn(OHEMRPN),
    "giou": lambda: tiny_rcnn(rpn={"prior": 0.01, "box_reg_loss_type": "giou"}),
    **{str(g): lambda g=g: tiny_rcnn(rpn={"prior": 0.01, "guide": g}) for g in GUIDES},
}


@pytest.mark.parametrize("kind", RPNS)
def test_rpns_with_any_labels(kind):
    rpn = ready(RPNS[kind]()).proposal_generator
    sizes = [(8, 12), (4, 6), (2, 3)]
    anchors = rpn.anchor_generator([torch.zeros(1, 8, *size) for size in sizes])
    nums = [len(x) for x in anchors]
    for i in range(80):
        draw = Draw(kind, i)
        num, dtype = draw.one(1, 2), draw.one(*DTYPES)
        labels = draw.labels((num, sum(nums)), 1)
        logits = draw.logits(labels, 1).squeeze(2).split(nums, dim=1)
        deltas = draw.deltas((num, sum(nums), 4), largest_delta(dtype)).split(nums, dim=1)
        logits, deltas = leaves(logits, dtype), leaves(deltas, dtype)
        gt_labels = list(torch.where(labels < 0, labels, 1 - labels).to(torch.int8))
        boxes = [draw.boxes(sum(nums)) for _ in range(num)]
        restart(rpn)
        with EventStorage(), autocast(dtype):
            losses = rpn.losses(anchors, logits, gt_labels, deltas, boxes)
        require_finite(losses, logits + deltas, (i, dtype))


# RoI heads, and each stage of a cascade -----------------------------------------------------------

PREDICTORS = {
    **{f"class boxes {g}": {"predictor": {"guide": g}} for g in GUIDES},
    "cascade": {"kind": "cascade", "predictor": {"guide": "gradient"}},
    "giou": {"predictor": {"box_reg_loss_type": "giou"}},
    "softmax prior": {"predictor": {"softmax_prior": 1e-7}},
    "OHEM": {"stock": True},
}


def drawn_proposals(draw, num_classes, smallest):
    """Labeled as ``ROIHeads`` does it: an image without an object has no boxes of objects."""
    proposals = []
    for _ in range(draw.one(1, 2)):
        num = draw.one(0, 1, 5, 40)
        labels = draw.labels((num,), num_classes, ignores=False)
        image = Instances(SIZE, proposal_boxes=Boxes(draw.boxes(num, smallest)), gt_classes=labels)
        if (labels < num_classes).any():
            image.gt_boxes = Boxes(draw.boxes(num))
        proposals.append(image)
    return proposals


@pytest.mark.parametrize("kind", PREDICTORS)
def test_box_predictors_with_any_proposals(kind):
    predictors = []
    for k in (1, 3):
        model = ready(tiny_rcnn(num_classes=k, rpn={} if kind == "OHEM" else {"prior": 0.01},
                                **PREDICTORS[kind]))  # fmt: skip
        predictors += [m for m in model.modules() if isinstance(m, FastRCNNOutputLayers)]
    for i in range(120):
        draw = Draw(kind, i)
        predictor, dtype = draw.one(*predictors), draw.one(*DTYPES)
        k, num_boxes = predictor.num_classes, predictor.bbox_pred.out_features // 4
        proposals = drawn_proposals(draw, k, smallest_side(dtype))
        labels = torch.cat([x.gt_classes for x in proposals])
        logits = draw.logits(labels, k + 1)
        deltas = draw.deltas((len(labels), num_boxes * 4), largest_delta(dtype) / 4)
        predictions = leaves([logits, deltas], dtype)
        restart(predictor)
        with EventStorage(), autocast(dtype):
            if kind == "OHEM":
                losses = {"sum": proposal_losses(predictor, predictions, proposals).sum()}
            else:
                losses = predictor.losses(tuple(predictions), proposals)
        require_finite(losses, predictions, (i, dtype))


# The losses alone ---------------------------------------------------------------------------------


def test_cross_entropy_over_everything():
    for i in range(1000):
        draw = Draw("bce", i)
        k, dtype = draw.one(1, 2, 7), draw.one(*DTYPES)
        labels = draw.labels((draw.one(0, 1, 17, 400),), k)
        (logits,) = leaves([draw.logits(labels, k)], dtype)
        loss = sigmoid_bce_all(logits, labels)
        require_finite({"loss": loss}, [logits], (i, dtype))
        assert loss >= 0 and sigmoid_bce_gradient_norm(logits, labels) <= loss * (1 + 1e-5)
        if len(labels):
            norm = cross_entropy_gradient_norm(logits, labels.clamp(max=k - 1))
            assert norm.isfinite() and norm >= 0


def test_ghm():
    loss = GHMC()
    for i in range(300):
        draw = Draw("ghm", i)
        k, dtype = draw.one(1, 3), draw.one(*DTYPES)
        labels = [draw.labels((draw.one(0, 1, 60),), k) for _ in range(2)]
        logits = leaves([draw.logits(x, k) for x in labels], dtype)
        if draw.one(True, False):
            loss.counts.zero_()
        with autocast(dtype):
            value = loss(logits, labels)
        require_finite({"loss": value}, logits, (i, dtype))
        assert loss.counts.isfinite().all()


def test_hard_examples_of_losses_that_are_no_numbers():
    for i in range(300):
        draw = Draw("ohem", i)
        num = draw.one(0, 1, 3, 50)
        values = [0.0, 1.0, 3e38, math.inf, -math.inf, math.nan]
        losses = torch.tensor([draw.one(*values) for _ in range(num)])
        chosen = hard_examples(losses, draw.boxes(num), draw.one(1, 8))
        assert len(chosen) == len(set(chosen.tolist())) <= min(num, 8)


@pytest.mark.parametrize("guide", GUIDES)
def test_guides_of_losses_of_any_size(guide):
    sizes = [0.0, 1e-45, 1e-38, 1e-20, 1e-3, 1.0, 1e4, 1e10]
    for i in range(500):
        draw = Draw(guide, i)
        made = make_guide(guide, weight=draw.one(1.0, 2.0))
        sums = [torch.tensor(draw.one(*sizes), requires_grad=True) for _ in range(2)]
        num = torch.tensor(draw.one(0, 1, 3, 10**6))
        found = guided_losses(
            *sums,
            num,
            made,
            loc_normalizers=(torch.tensor(draw.one(0.0, 1e-30, 1.0, 1e6)),),
            gradient_norms=lambda sums=sums: [x.detach() for x in sums],
        )
        terms = {"cls": found.loss_cls, "loc": found.loss_loc, **found.extra("guide")}
        if found.loss_loc.isfinite():  # 1e10 over 1e-30 is not, with a gradient of 1e30
            require_finite(terms, sums, i)
        assert 0 <= found.ratio <= MAX_RATIO


@pytest.mark.parametrize("cls", [0.0, 1e-45, 1e-38, 1e-30, 1e-7, 1.0])
def test_r_has_an_end_that_no_real_loss_comes_near(cls):
    r = guide_ratio(torch.tensor(cls), torch.tensor(2.0), 2.0).item()
    exact = 4.0 / torch.tensor(cls).item() if cls else 0.0
    assert r == pytest.approx(min(exact, 1e30), rel=1e-6)
