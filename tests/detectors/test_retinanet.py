import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import RetinaNet
from fvcore.nn import giou_loss
from torch import nn

from helpers.tiny import anchor_order, batch, stock_retinanet, tiny_retinanet, train_step


def _independent_losses(model, inputs):
    """(sum of BCE, sum of box losses, foreground) in float64 from the head's raw outputs."""
    with torch.no_grad():
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        features = [features[f] for f in model.head_in_features]
        logits, deltas = model.head(features)
        num_images, num_classes = len(inputs), model.num_classes
        x = torch.cat([anchor_order(o, num_classes) for o in logits], 1).double()
        d = torch.cat([anchor_order(o, 4) for o in deltas], 1).double()
        anchors = torch.cat([b.tensor for b in model.anchor_generator(features)])
        labels, boxes = RetinaNet.label_anchors(
            model, model.anchor_generator(features), [i["instances"] for i in inputs]
        )
        sum_cls = sum_box = num_foreground = 0
        for i in range(num_images):
            valid = labels[i] >= 0
            target = torch.zeros(len(anchors), num_classes + 1, dtype=torch.float64)
            target[valid, labels[i][valid]] = 1
            target = target[:, :num_classes]
            bce = -target * x[i].sigmoid().log() - (1 - target) * (-x[i]).sigmoid().log()
            sum_cls += bce[valid].sum().item()
            fg = valid & (labels[i] < num_classes)
            num_foreground += fg.sum().item()
            sum_box += _box_loss(model, anchors[fg].double(), boxes[i][fg].double(), d[i][fg])
    return sum_cls, sum_box, num_foreground


def _box_loss(model, anchors, boxes, deltas):
    """Smooth L1 on (dx, dy, dw, dh), or 1 - GIoU of the decoded boxes, summed."""
    sizes, centers = anchors[:, 2:] - anchors[:, :2], (anchors[:, 2:] + anchors[:, :2]) / 2
    if model.box_reg_loss_type == "giou":
        center = centers + deltas[:, :2] * sizes
        half = deltas[:, 2:].exp() * sizes / 2
        decoded = torch.cat([center - half, center + half], dim=1)
        return giou_loss(decoded, boxes, reduction="sum").item() if len(boxes) else 0.0
    box_sizes, box_centers = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
    target = torch.cat([(box_centers - centers) / sizes, (box_sizes / sizes).log()], dim=1)
    if model.smooth_l1_beta:
        beta = model.smooth_l1_beta
        return nn.SmoothL1Loss(reduction="sum", beta=beta)(deltas, target).item()
    return (deltas - target).abs().sum().item()


INPUTS = {
    "some objects": lambda k: batch(3, 5, num_classes=k),
    "an empty image": lambda k: batch(4, 0, 2, num_classes=k),
    "one image": lambda k: batch(6, num_classes=k, size=(61, 83)),
}


@pytest.mark.parametrize(("box_loss", "beta"), [("smooth_l1", 0), ("smooth_l1", 0.5), ("giou", 0)])
@pytest.mark.parametrize("name, num_classes", [*zip(INPUTS, (3, 1, 3))])
def test_losses_are_those_computed_from_the_heads_raw_outputs(name, num_classes, box_loss, beta):
    box = {"box_reg_loss_type": box_loss, "smooth_l1_beta": float(beta)}
    model = tiny_retinanet(num_classes=num_classes, prior=1e-3, **box)
    inputs = INPUTS[name](num_classes)
    sum_cls, sum_box, num_foreground = _independent_losses(model, inputs)
    losses, latest, gradients = train_step(model, inputs)
    assert num_foreground > 0 and losses.keys() == {"loss_cls", "loss_box_reg"}
    box = sum_box / num_foreground
    assert losses["loss_box_reg"].item() == pytest.approx(box, rel=1e-5)
    assert losses["loss_cls"].item() == pytest.approx(box, rel=1e-5)
    assert latest["guide/loss_cls_raw"] == pytest.approx(sum_cls / num_foreground, rel=1e-5)
    assert latest["guide/r"] == pytest.approx(sum_box / sum_cls, rel=1e-5)
    assert latest["num_pos_anchors"] == num_foreground / len(inputs)
    assert latest["guide/empty_batches"] == 0
    assert all(g.abs().max() > 0 for name, g in gradients.items() if "head" in name)


def test_with_focal_loss_reduced_to_bce_stock_retinanet_has_the_same_gradients():
    # alpha -1 and gamma 0 turn Detectron2's focal loss into BCE; its normalizer is a running mean.
    inputs = batch(3, 5)
    model = tiny_retinanet(prior=0.01, guide=1.0)
    stock = stock_retinanet(focal_loss_alpha=-1, focal_loss_gamma=0.0)
    stock.load_state_dict(model.state_dict())
    ours, _, our_gradients = train_step(model, inputs)
    theirs, latest, their_gradients = train_step(stock, inputs)
    factor = stock.loss_normalizer / (latest["num_pos_anchors"] * len(inputs))
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key] * factor, rtol=1e-4, atol=1e-6)
    for name, gradient in our_gradients.items():
        expected = their_gradients[name] * factor
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_the_box_loss_weight_scales_both_losses():
    inputs = batch(3, 5)
    plain, _, _ = train_step(tiny_retinanet(prior=0.01), inputs)
    weighted, _, _ = train_step(tiny_retinanet(prior=0.01, box_reg_loss_weight=0.25), inputs)
    for key in plain:
        assert weighted[key].item() == pytest.approx(0.25 * plain[key].item(), rel=1e-5)


def _assert_zero_but_connected(model, inputs):
    losses, latest, gradients = train_step(model, inputs)
    assert losses["loss_cls"].item() == losses["loss_box_reg"].item() == 0
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.abs().max() == 0, name
    assert latest["guide/empty_batches"] == 1 and latest["num_pos_anchors"] == 0


def test_objects_that_no_anchor_fits_give_zeros_for_every_parameter():
    model = tiny_retinanet(prior=0.01, low_quality=False, thresholds=(0.998, 0.999))
    _assert_zero_but_connected(model, batch(3, 2))


def test_a_batch_of_ignored_anchors_gives_zeros_for_every_parameter():
    model = tiny_retinanet(prior=0.01)
    model.anchor_matcher = Matcher([0.4, 0.5], [-1, -1, -1], allow_low_quality_matches=False)
    _assert_zero_but_connected(model, batch(3, 2))


@pytest.mark.parametrize("wrap", [lambda model: model, nn.Sequential], ids=["bare", "wrapped"])
def test_a_loaded_head_is_told_apart_from_a_loaded_backbone(wrap):
    model = tiny_retinanet()
    outer = wrap(model)
    weights = {k: v for k, v in outer.state_dict().items() if ".backbone." in f".{k}"}
    outer.load_state_dict(weights, strict=False)
    assert not model.head_was_loaded
    outer.load_state_dict(outer.state_dict())
    assert model.head_was_loaded
