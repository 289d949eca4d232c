"""An RPN, and its losses computed anew."""

import torch
from detectron2.structures import Boxes, ImageList, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from helpers.tiny import WIDTH, anchor_order, batch
from helpers.tiny_detectors import tiny_rcnn

KEYS = ["loss_rpn_cls", "loss_rpn_loc"]


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
            return by_hand(anchors, x, d, *self.labels(), self.rpn)


def by_hand(anchors, logits, deltas, labels, boxes, rpn):
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


def losses_of(rpn, case, logits, deltas):
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


def predictions_of(case, dtype=torch.float32, offset=0.0):
    generator = torch.Generator().manual_seed(3)
    num_images, num = case.labels()[0].shape
    logits = torch.randn((num_images, num), generator=generator) * 2 + offset
    deltas = torch.randn((num_images, num, 4), generator=generator)
    return logits.to(dtype).requires_grad_(), deltas.to(dtype).requires_grad_()
