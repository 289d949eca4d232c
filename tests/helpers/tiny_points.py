"""The smallest real ATSS and PAA, and their losses computed anew with literal_points.py."""

import pytest
import torch
from detectron2.config import get_cfg

from helpers.literal_points import (
    atss_literal,
    decoded,
    focal,
    foreground_terms,
    giou,
    paa_candidates,
    paa_literal,
    plain_cross_entropy,
)
from helpers.tiny_detectors import tiny_fcos
from helpers.yaml_files import ROOT
from sampling_free import ATSS, PAA, SamplingFreeATSS, SamplingFreePAA, add_sampling_free_config

CLASSES = [ATSS, SamplingFreeATSS, PAA, SamplingFreePAA]
SAMPLING_FREE = [SamplingFreeATSS, SamplingFreePAA]
KEYS = {
    ATSS: ["loss_cls", "loss_box_reg", "loss_centerness"],
    SamplingFreeATSS: ["loss_cls", "loss_box_reg", "loss_centerness"],
    PAA: ["loss_cls", "loss_box_reg", "loss_iou"],
    SamplingFreePAA: ["loss_cls", "loss_box_reg", "loss_iou"],
}


def points_model(cls, **kwargs):
    """A tiny ATSS or PAA whose head has weights that are not all near zero."""
    if cls.__name__.startswith("SamplingFree"):
        kwargs = {"prior": 0.01, **kwargs}
    model = tiny_fcos(cls, **kwargs)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer, scale in [("cls_score", 0.3), ("bbox_pred", 0.3), ("ctrness", 0.3)]:
            weight = getattr(model.head, layer).weight
            weight.add_(scale * torch.randn(weight.shape, generator=generator))
    return model


def logits_of(model, logits, sizes):
    """Logits (N, R, K) as a detector's losses take them: of a sampling-free one (N, K, Hi, Wi)."""
    levels = list(logits.split(sizes, dim=1))
    return as_levels(levels) if is_sampling_free(model) else levels


def as_levels(rows):
    """Of each level (N, Hi * Wi, K) as (N, K, Hi * Wi, 1)."""
    return [x.transpose(1, 2).unsqueeze(3) for x in rows]


def points_cfg(name, *pairs):
    """The CfgNode of a small detector on the CPU, from Detectron2's own file."""
    cfg = get_cfg()
    add_sampling_free_config(cfg)
    cfg.merge_from_file(str(ROOT / "Base-RetinaNet.yaml"))
    cfg.MODEL.META_ARCHITECTURE = name
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.RESNETS.update(DEPTH=50, STEM_OUT_CHANNELS=8, WIDTH_PER_GROUP=8, RES2_OUT_CHANNELS=32)
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.merge_from_list(list(pairs))
    return cfg


def flat(output):
    """(N, H * W, channels) from a level's (N, channels, H, W), row after row."""
    rows = [output[:, :, y, x] for y in range(output.shape[2]) for x in range(output.shape[3])]
    return torch.stack(rows, dim=1)


@torch.no_grad()
def raw_outputs(model, inputs):
    """Logits, deltas and quality of the head, each for each level (N, Hi * Wi, D), in float64."""
    features = model.backbone(model.preprocess_image(inputs).tensor)
    levels = model.head([features[f] for f in model.head_in_features])
    return [[flat(x).double() for x in kind] for kind in levels]


def is_sampling_free(model):
    return type(model).__name__.startswith("SamplingFree")


def kind_of_quality(model):
    return "iou" if type(model).__name__.endswith("PAA") else "centerness"


def expected_losses(model, anchors, logits, deltas, quality, labels, boxes):
    """What the model's losses are to be, in float64, differentiable.

    Returns:
        tuple: classification loss before a guide scales it, box loss, quality loss; number of
        foreground anchors.
    """
    k = model.num_classes
    if is_sampling_free(model):
        sum_cls = plain_cross_entropy(logits, labels).sum()
    else:
        sum_cls = focal(logits, labels, model.focal_loss_alpha, model.focal_loss_gamma).sum()
    terms = foreground_terms(
        anchors, deltas, quality, labels, boxes, k, target=kind_of_quality(model)
    )
    num = len(terms)
    box = sum(w * x for x, _, w in terms) / (sum(w for _, _, w in terms) or 1)
    quality_weight = 0.5 if kind_of_quality(model) == "iou" else 1
    return (
        sum_cls / max(num, 1),
        model.box_loss_weight * box,
        quality_weight * sum(x for _, x, _ in terms) / max(num, 1),
        num,
    )


def _rows(objects, instances, num_classes):
    """Labels (R,) and boxes (R, 4) from the index of each anchor's object."""
    classes, boxes = instances.gt_classes.tolist(), instances.gt_boxes.tensor.double()
    labels = [classes[g] if g >= 0 else num_classes for g in objects]
    rows = [boxes[g] if g >= 0 else torch.zeros(4).double() for g in objects]
    return torch.tensor(labels), torch.stack(rows)


def atss_targets(model, levels, inputs):
    """Labels (N, R) and boxes (N, R, 4) by the literal ATSS."""
    targets = []
    for record in inputs:
        instances = record["instances"]
        objects = atss_literal(levels, instances.gt_boxes.tensor.double().numpy(), model.topk)
        targets.append(_rows(objects, instances, model.num_classes))
    return [torch.stack(x) for x in zip(*targets)]


def paa_targets(model, levels, inputs, logits, deltas, threshold=0.1):
    """Labels (N, R) and boxes (N, R, 4) by the literal PAA, of the head's raw outputs."""
    anchors = [a.tolist() for level in levels for a in level]
    k, sizes = model.num_classes, [len(x) for x in levels]
    objects, labels, boxes = [], [], []
    for record in inputs:
        instances = record["instances"]
        objects.append(
            paa_candidates(anchors, instances.gt_boxes.tensor.double().tolist(), threshold)
        )
        of_image = _rows(objects[-1], instances, k)
        labels.append(of_image[0])
        boxes.append(of_image[1])
    labels, boxes = torch.stack(labels), torch.stack(boxes)
    loc = torch.zeros(labels.shape, dtype=torch.float64)
    for n, r in (labels < k).nonzero().tolist():
        loc[n, r] = 1 - giou([x.item() for x in decoded(deltas[n, r], anchors[r])], boxes[n, r])
    if is_sampling_free(model):
        cls = plain_cross_entropy(logits, labels)
        cls = cls.sum(dim=2) * loc.sum() / cls.sum()
    else:
        cls = focal(logits, labels).sum(dim=2)
    losses = (cls + loc).tolist()
    targets = [
        _rows(paa_literal(losses[n], objects[n], sizes, model.topk), x["instances"], k)
        for n, x in enumerate(inputs)
    ]
    return [torch.stack(x) for x in zip(*targets)]


def check_losses(model, losses, latest, expected, num_images=2, rel=1e-4):
    """The values of the losses, and what is logged."""
    cls, box, quality, num = expected
    assert list(losses) == KEYS[type(model)]
    values = [losses[k].item() for k in losses]
    assert values[1:] == pytest.approx([float(box), float(quality)], rel=rel)
    guide = (float(box) + float(quality)) / 2
    if is_sampling_free(model):
        assert values[0] == pytest.approx(guide, rel=rel)
        assert latest["guide/loss_cls_raw"] == pytest.approx(cls.item(), rel=rel)
        assert latest["guide/r"] == pytest.approx(guide / cls.item(), rel=rel)
    else:
        assert values[0] == pytest.approx(cls.item(), rel=rel)
    assert latest["num_pos_anchors"] == pytest.approx(num / num_images)
