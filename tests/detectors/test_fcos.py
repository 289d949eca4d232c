"""FCOS: losses and gradients against loops over points, and Detectron2's with BCE."""

import math

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from helpers.fcos_cases import lively
from helpers.tiny import batch, train_step
from helpers.tiny_detectors import stock_fcos, tiny_fcos
from helpers.tiny_points import logits_of

WEIGHTS = ["uniform", "centerness"]


KEYS = ["loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"]


def _hand_made(num_classes, seed=0, dtype=torch.float32, scale=1):
    """Two images on two levels of points: predictions, labels and boxes, all drawn.

    Returns:
        tuple: points (R, 3), x, y and stride; sizes of the levels; logits (2, R, K); deltas
        (2, R, 4), partly negative; centerness (2, R, 1); labels (2, R); boxes (2, R, 4), each
        with its point strictly inside.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(shape, generator=generator)

    points = [(8.0 * x, 8.0 * y, 8.0) for y in range(4) for x in range(5)]
    points += [(16.0 * x, 16.0 * y, 16.0) for y in range(2) for x in range(3)]
    points = scale * torch.tensor(points)
    num = len(points)
    strides = points[:, 2:]
    logits = (8 * draw(2, num, num_classes) - 6).to(dtype).requires_grad_()
    deltas = (4 * draw(2, num, 4) - 0.4).to(dtype).requires_grad_()
    centerness = (4 * draw(2, num, 1) - 2).to(dtype).requires_grad_()
    is_background = draw(2, num) < 0.6
    labels = (draw(2, num) * num_classes).long().masked_fill(is_background, num_classes)
    to_sides = (0.2 + 3 * draw(2, num, 4)) * strides
    corners = torch.cat([points[:, :2] - to_sides[..., :2], points[:, :2] + to_sides[..., 2:]], 2)
    assert 0 < is_background.sum() < 2 * num
    return points, [20, 6], logits, deltas, centerness, labels, corners


def _boxes_argument(model, boxes):
    """(N, R, 4) as this Detectron2's FCOS hands it to its losses: Boxes or tensors."""
    empty = Instances((8, 8), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0).long())
    _, given = model.label_anchors([Boxes(torch.tensor([[0.0, 0, 8, 8]]))] * 2, [empty])
    return [Boxes(b) if isinstance(given[0], Boxes) else b for b in boxes]


def _losses(model, points, sizes, logits, deltas, centerness, labels, boxes):
    """(losses, event storage's latest numbers) of ``model.losses``."""
    half = points[:, 2:] / 2
    anchors = torch.cat([points[:, :2] - half, points[:, :2] + half], dim=1)
    with EventStorage() as storage:
        losses = model.losses(
            [Boxes(a) for a in anchors.split(sizes)],
            logits_of(model, logits, sizes),
            list(labels),
            list(deltas.split(sizes, dim=1)),
            _boxes_argument(model, boxes),
            list(centerness.split(sizes, dim=1)),
        )
        return losses, {k: v for k, (v, _) in storage.latest().items()}


def _giou(a, b):
    """GIoU of two boxes, each four scalars."""
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
    width = torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0])
    height = torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1])
    intersection = width * height if width > 0 and height > 0 else 0 * width
    hull = (torch.maximum(a[2], b[2]) - torch.minimum(a[0], b[0])) * (
        torch.maximum(a[3], b[3]) - torch.minimum(a[1], b[1])
    )
    union = sum(areas) - intersection
    return intersection / union - (hull - union) / hull


def _by_hand(points, logits, deltas, centerness, labels, boxes, num_classes):
    """Sums in float64, one point after the other; differentiable.

    Returns:
        tuple: sum of BCE; [(box loss, centerness loss, centerness target)] of each foreground
        point.
    """
    sum_cls, foreground = 0, []
    for n in range(len(labels)):
        target = torch.zeros(len(points), num_classes, dtype=torch.float64)
        for r, label in enumerate(labels[n].tolist()):
            if label < num_classes:
                target[r, label] = 1
                x, y, stride = points[r].tolist()
                side = deltas[n, r].double().clamp(min=0) * stride  # to the left, top, ...
                predicted = x - side[0], y - side[1], x + side[2], y + side[3]
                box = boxes[n, r].double()
                left, top, right, bottom = (x - box[0], y - box[1], box[2] - x, box[3] - y)
                horizontal = min(left, right) / max(left, right)
                ratio = math.sqrt(horizontal * min(top, bottom) / max(top, bottom))
                logit = centerness[n, r, 0].double()
                ctr = -ratio * logit.sigmoid().log() - (1 - ratio) * (-logit).sigmoid().log()
                foreground.append((1 - _giou(predicted, box), ctr, ratio))
        sum_cls = sum_cls + F.binary_cross_entropy_with_logits(
            logits[n].double(), target, reduction="sum"
        )
    return sum_cls, foreground


def _expected(sum_cls, foreground, box_weight):
    """(unscaled classification loss, box loss, centerness loss)."""
    num = len(foreground)
    if box_weight == "uniform":
        box = sum(loss for loss, _, _ in foreground) / num
    else:
        box = sum(w * loss for loss, _, w in foreground) / sum(w for _, _, w in foreground)
    return sum_cls / num, box, sum(ctr for _, ctr, _ in foreground) / num


@pytest.mark.parametrize("box_weight, guide", [*zip(WEIGHTS, ["iteration", 0.7])])
def test_gradients_are_those_of_the_losses_by_hand(box_weight, guide):
    model = tiny_fcos(prior=0.01, box_weight=box_weight, guide=guide)
    points, sizes, *arrays = _hand_made(3)
    inputs = arrays[:3]
    losses, latest = _losses(model, points, sizes, *arrays)
    cls, box, ctr = _expected(*_by_hand(points, *arrays, 3), box_weight)
    ratio = (box + ctr).item() / 2 / cls.item() if guide == "iteration" else guide
    assert latest["guide/r"] == pytest.approx(ratio, rel=1e-5)
    for key, factor, loss in zip(KEYS, [ratio, 1, 1], [cls, box, ctr]):
        options = dict(retain_graph=True, allow_unused=True)
        ours = torch.autograd.grad(losses[key], inputs, **options)
        expected = torch.autograd.grad(loss, inputs, **options)
        assert sum(x is not None and x.abs().max() > 0 for x in expected) == 1
        for x, y, z in zip(inputs, ours, expected):
            # Above all: no gradient of the classification loss to boxes and centerness.
            y, z = (torch.zeros_like(x) if g is None else g for g in (y, z))
            torch.testing.assert_close(y, factor * z, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("box_weight", WEIGHTS)
def test_half_precision_of_large_boxes_is_finite_and_exact(box_weight):
    model = tiny_fcos(prior=0.01, box_weight=box_weight)
    points, sizes, *arrays = _hand_made(3, seed=3, dtype=torch.float16, scale=8)
    sides = arrays[4][..., 2] - arrays[4][..., 0]
    assert sides[arrays[3] < 3].max() > 256  # beyond the square root of float16's largest number
    losses, latest = _losses(model, points, sizes, *arrays)
    cls, box, ctr = _expected(*_by_hand(points, *arrays, 3), box_weight)
    assert losses["loss_fcos_loc"].item() == pytest.approx(box.item(), rel=1e-5)
    assert losses["loss_fcos_ctr"].item() == pytest.approx(ctr.item(), rel=1e-5)
    assert losses["loss_fcos_cls"].item() == pytest.approx((box + ctr).item() / 2, rel=1e-5)
    assert latest["guide/loss_cls_raw"] == pytest.approx(cls.item(), rel=1e-5)
    sum(losses.values()).backward()
    for x in arrays[:3]:
        assert x.grad.dtype == torch.float16 and x.grad.isfinite().all() and x.grad.any()


def _flat(output):
    """(N, H * W, channels) from a level's (N, channels, H, W), row after row."""
    rows = [output[:, :, y, x] for y in range(output.shape[2]) for x in range(output.shape[3])]
    return torch.stack(rows, dim=1)


def _from_raw_outputs(model, inputs, box_weight):
    """(classification, box, centerness loss), from the head's outputs and stock's labels."""
    with torch.no_grad():
        features = model.backbone(model.preprocess_image(inputs).tensor)
        features = [features[f] for f in model.head_in_features]
        levels = model.head(features)
        predictions = [torch.cat([_flat(x) for x in kind], dim=1) for kind in levels]
        points = [
            ((x + 0.5) * stride, (y + 0.5) * stride, float(stride))
            for f, stride in zip(features, (8, 16, 32, 64, 128))
            for y in range(f.shape[2])
            for x in range(f.shape[3])
        ]
        stock = stock_fcos(
            num_classes=model.num_classes, center_sampling_radius=model.center_sampling_radius
        )
        anchors = stock.anchor_generator(features)
        labels, boxes = stock.label_anchors(anchors, [i["instances"] for i in inputs])
        boxes = torch.stack([getattr(b, "tensor", b) for b in boxes])
        sums = _by_hand(
            torch.tensor(points), *predictions, torch.stack(labels), boxes, model.num_classes
        )
        return _expected(*sums, box_weight)


INPUTS = {
    "some objects": lambda k: batch(3, 5, num_classes=k),
    "an empty image": lambda k: batch(4, 0, 2, num_classes=k),
    "one image": lambda k: batch(6, num_classes=k, size=(61, 83)),
}


@pytest.mark.parametrize(
    ("name", "num_classes", "box_weight", "radius"),
    [
        ("some objects", 3, "uniform", 1.5),
        ("some objects", 1, "centerness", math.inf),
        ("an empty image", 3, "centerness", 1.5),
        ("one image", 3, "uniform", math.inf),
    ],
)
def test_losses_are_those_computed_from_the_heads_raw_outputs(
    name, num_classes, box_weight, radius
):
    settings = dict(num_classes=num_classes, box_weight=box_weight, center_sampling_radius=radius)
    model = lively(tiny_fcos(prior=1e-3, **settings))
    inputs = INPUTS[name](num_classes)
    cls, box, ctr = _from_raw_outputs(model, inputs, box_weight)
    losses, latest, gradients = train_step(model, inputs)
    assert losses["loss_fcos_loc"].item() == pytest.approx(box.item(), rel=1e-4)
    assert losses["loss_fcos_ctr"].item() == pytest.approx(ctr.item(), rel=1e-4)
    assert losses["loss_fcos_cls"].item() == pytest.approx((box + ctr).item() / 2, rel=1e-4)
    assert latest["guide/loss_cls_raw"] == pytest.approx(cls.item(), rel=1e-4)
    for key, gradient in gradients.items():
        assert gradient.isfinite().all() and gradient.abs().max() > 0, key


@pytest.mark.parametrize("name", INPUTS)
def test_with_focal_loss_reduced_to_bce_stock_fcos_has_the_same_losses_and_gradients(name):
    # alpha -1 and gamma 0 turn Detectron2's focal loss into BCE; its normalizer is a running mean.
    inputs = INPUTS[name](3)
    model = lively(tiny_fcos(prior=0.01, guide=1.0))
    stock = stock_fcos(focal_loss_alpha=-1, focal_loss_gamma=0.0, seed=4)
    stock.load_state_dict(model.state_dict())
    ours, latest, our_gradients = train_step(model, inputs)
    theirs, their_latest, their_gradients = train_step(stock, inputs)
    assert latest["num_pos_anchors"] == their_latest["num_pos_anchors"] > 0
    factor = stock.loss_normalizer / (latest["num_pos_anchors"] * len(inputs))
    assert latest["guide/r"] == 1 and abs(factor - 1) > 0.1
    for key in KEYS:
        torch.testing.assert_close(ours[key], theirs[key] * factor, rtol=1e-4, atol=1e-6)
    for key, gradient in our_gradients.items():
        expected = their_gradients[key] * factor
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def _assert_zero_but_connected(model, inputs):
    losses, latest, gradients = train_step(model, inputs)
    assert [losses[k].item() for k in KEYS] == [0, 0, 0]
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.abs().max() == 0, name
    assert latest["guide/empty_batches"] == 1 and latest["num_pos_anchors"] == 0


@pytest.mark.parametrize("box_weight", WEIGHTS)
def test_objects_without_a_point_give_zeros_for_every_parameter(box_weight):
    model = tiny_fcos(prior=0.01, box_weight=box_weight, center_sampling_radius=1e-6)
    _assert_zero_but_connected(model, batch(3, 2))
