"""Losses of ATSS and PAA, with focal loss and without, of labels made by hand."""

import pytest
import torch
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from helpers.literal_points import square_anchors
from helpers.tiny_points import (
    CLASSES,
    SAMPLING_FREE,
    check_losses,
    expected_losses,
    logits_of,
    points_model,
)
from sampling_free import ATSS, PAA


def _hand_made(num_classes=3, seed=0, dtype=torch.float32, scale=1):
    """Two images with drawn predictions, labels and boxes, which hold their anchor's center.

    Returns:
        tuple: anchors (R, 4); sizes of the levels; logits, deltas, quality (2, R, K or 4 or 1);
        labels (2, R); boxes (2, R, 4).
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(shape, generator=generator)

    levels = [scale * torch.from_numpy(x).float() for x in square_anchors((64, 96))]
    anchors, sizes = torch.cat(levels), [len(x) for x in levels]
    num = len(anchors)
    logits = (8 * draw(2, num, num_classes) - 6).to(dtype).requires_grad_()
    deltas = (6 * draw(2, num, 4) - 3).to(dtype).requires_grad_()
    quality = (4 * draw(2, num, 1) - 2).to(dtype).requires_grad_()
    is_background = draw(2, num) < 0.8
    labels = (draw(2, num) * num_classes).long().masked_fill(is_background, num_classes)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    to_sides = (0.1 + 0.6 * draw(2, num, 4)) * (anchors[:, 2:3] - anchors[:, :1])
    corners = torch.cat([centers - to_sides[..., :2], centers + to_sides[..., 2:]], dim=2)
    return anchors, sizes, logits, deltas, quality, labels, corners


def _losses(model, anchors, sizes, logits, deltas, quality, labels, boxes):
    """(losses, event storage's latest numbers) of ``model.losses``."""
    with EventStorage() as storage:
        losses = model.losses(
            [Boxes(x) for x in anchors.split(sizes)],
            logits_of(model, logits, sizes),
            list(labels),
            list(deltas.split(sizes, dim=1)),
            list(boxes),
            list(quality.split(sizes, dim=1)),
        )
        return losses, {k: v for k, (v, _) in storage.latest().items()}


def _expected(model, anchors, sizes, logits, deltas, quality, labels, boxes):
    rows = [x.double() for x in (logits, deltas, quality)]
    return expected_losses(model, anchors.double().tolist(), *rows, labels, boxes)


@pytest.mark.parametrize("num_classes, weight", [(1, None), (3, 3.5)])
@pytest.mark.parametrize("cls", CLASSES)
def test_losses_are_those_of_the_definition(cls, num_classes, weight):
    settings = {} if weight is None else {"box_loss_weight": weight}
    model = points_model(cls, num_classes=num_classes, **settings)
    assert model.box_loss_weight == (weight or (1.3 if issubclass(cls, PAA) else 2.0))
    arrays = _hand_made(num_classes)
    losses, latest = _losses(model, *arrays)
    check_losses(model, losses, latest, _expected(model, *arrays), rel=1e-5)


@pytest.mark.parametrize("cls, alpha, gamma", [(ATSS, 0.25, 2.0), (PAA, 0.6, 0.5)])
def test_gradients_with_focal_loss_are_those_of_the_definition(cls, alpha, gamma):
    model = points_model(cls, focal_loss_alpha=alpha, focal_loss_gamma=gamma)
    arrays = _hand_made()
    losses, _ = _losses(model, *arrays)
    expected = _expected(model, *arrays)[:3]
    for loss, wanted, own in zip(losses.values(), expected, arrays[2:5]):
        options = dict(retain_graph=True, allow_unused=True)
        ours = torch.autograd.grad(loss, arrays[2:5], **options)
        theirs = torch.autograd.grad(wanted, arrays[2:5], **options)
        for x, y, z in zip(arrays[2:5], ours, theirs):
            # Each loss moves its own prediction and no other.
            assert (z is not None and z.any()) == (x is own)
            y, z = (torch.zeros_like(x) if g is None else g for g in (y, z))
            torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("cls, guide", [*zip(SAMPLING_FREE, ["iteration", 0.7])])
def test_the_guide_scales_the_gradient_of_the_classification_loss_alone(cls, guide):
    model = points_model(cls, guide=guide)
    arrays = _hand_made()
    losses, latest = _losses(model, *arrays)
    raw, box, quality, _ = _expected(model, *arrays)
    ratio = (box + quality).item() / 2 / raw.item() if guide == "iteration" else guide
    assert latest["guide/r"] == pytest.approx(ratio, rel=1e-5)
    for loss, wanted, factor in zip(losses.values(), (raw, box, quality), (ratio, 1, 1)):
        options = dict(retain_graph=True, allow_unused=True)
        ours = torch.autograd.grad(loss, arrays[2:5], **options)
        theirs = torch.autograd.grad(wanted, arrays[2:5], **options)
        for x, y, z in zip(arrays[2:5], ours, theirs):
            y, z = (torch.zeros_like(x) if g is None else g for g in (y, z))
            torch.testing.assert_close(y, factor * z, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("cls", SAMPLING_FREE)
def test_the_gradient_guide_matches_the_sizes_of_the_gradients(cls):
    model = points_model(cls, guide="gradient")
    arrays = _hand_made()
    _, latest = _losses(model, *arrays)
    norms = [
        torch.autograd.grad(loss, x, retain_graph=True)[0].abs().sum().item() / x.shape[-1] ** mean
        for loss, x, mean in zip(_expected(model, *arrays), arrays[2:5], (0, 1, 1))
    ]
    assert latest["guide/r"] == pytest.approx((norms[1] + norms[2]) / 2 / norms[0], rel=1e-4)


@pytest.mark.parametrize("cls", CLASSES)
def test_float16_of_large_boxes_is_finite_and_exact(cls):
    model = points_model(cls)
    arrays = _hand_made(seed=3, dtype=torch.float16, scale=4)
    losses, latest = _losses(model, *arrays)
    check_losses(model, losses, latest, _expected(model, *arrays), rel=1e-4)
    sum(losses.values()).backward()
    for x in arrays[2:5]:
        assert x.grad.isfinite().all() and x.grad.any()
