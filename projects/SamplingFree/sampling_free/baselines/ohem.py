"""Online hard example mining, OHEM: of all samples only those with the largest losses are learned.

Every sample's loss (classification and box) is computed without gradient. Samples that overlap
have nearly the same loss, so non-maximum suppression with the loss as the score comes first; the
hardest ``num`` of each image that are left are the minibatch. There is no ratio of foreground to
background, and no sampling at random.

Source: Shrivastava, Gupta, Girshick, arXiv 1604.03540, sections 4 and 4.1. Their code suppresses
each class by itself and takes the 128 hardest of two images together; this is the text.
"""

import math

import torch
from detectron2.layers import ciou_loss, diou_loss
from detectron2.structures import Boxes
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

from ..utils.errors import BadInput, require_number
from .signed_logits import signed_logits

# Of the paper: B = 128 RoIs of N = 2 images, and its section 4.1.
HARD_PER_IMAGE = 64
NMS_THRESH = 0.7
IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


@torch.no_grad()
def hard_examples(
    losses: Tensor, boxes: Tensor, num: int, nms_thresh: float = NMS_THRESH
) -> Tensor:
    """The hardest samples of an image: greedy NMS with the loss as the score, then the first.

    Args:
        losses: (R,); what is not finite is the hardest. Of equal losses the first is
            the harder.
        boxes: (R, 4), XYXY.
        num: at most so many.
        nms_thresh: a box is dropped if its IoU with a harder one is above it.

    Returns:
        (<= num,) int64 indices, the hardest first.
    """
    order = losses.float().nan_to_num(math.inf, math.inf, -math.inf)
    order = order.sort(descending=True, stable=True).indices
    # The first ``num`` survivors do not depend on easier samples: a few of these are enough.
    size = 4 * num
    while True:
        candidates = order[:size]
        ranks = torch.arange(len(candidates), device=boxes.device)
        kept = nms(boxes[candidates].float(), -ranks.float(), nms_thresh)[:num]
        if len(kept) == num or size >= len(order):
            return candidates[kept]
        size *= 2


def box_losses(
    transform, boxes: Tensor, deltas: Tensor, gt_boxes: Tensor, loss_type: str, beta: float
) -> Tensor:
    """The box loss of each sample, which Detectron2's ``_dense_box_regression_loss`` sums up.

    Args:
        transform (Box2BoxTransform): how boxes are encoded.
        boxes, gt_boxes: (F, 4), XYXY, of foreground samples and of their objects.
        deltas: (F, 4), predicted.
        loss_type: "smooth_l1", summed over the four coordinates, "giou", "diou" or "ciou".
        beta: of "smooth_l1"; 0 is L1.

    Returns:
        (F,), float32.

    Raises:
        BadInput: for another loss; lists those known.
    """
    deltas = deltas.float()
    if loss_type == "smooth_l1":
        return smooth_l1_loss(deltas, transform.get_deltas(boxes, gt_boxes), beta).sum(dim=1)
    if loss_type not in IOU_LOSSES:
        raise BadInput(f"box_reg_loss_type={loss_type!r}: known are {['smooth_l1', *IOU_LOSSES]}")
    return IOU_LOSSES[loss_type](transform.apply_deltas(deltas, boxes), gt_boxes)


@torch.no_grad()
def hard_anchors(
    head,
    anchors: list[Boxes],
    logits: Tensor,
    labels: Tensor,
    deltas: Tensor,
    gt_boxes: list[Tensor],
    num: int,
    nms_thresh: float,
    weights: tuple[float, ...] = (1.0, 1.0),
) -> Tensor:
    """The hardest anchors of each image, by BCE summed over the classes plus box loss.

    Args:
        head (RetinaNet or RPN): says which box loss, and how boxes are encoded.
        anchors: of each level.
        logits: (N, R, K).
        labels: (N, R): -1 ignored, 0..K-1 foreground, K background.
        deltas: (N, R, 4).
        gt_boxes: N times (R, 4), of the matched objects.
        num: at most so many of an image.
        nms_thresh: see :func:`hard_examples`.
        weights: of the classification and of the box loss.

    Returns:
        (N, R) bool; no ignored anchor is among them.
    """
    boxes = Boxes.cat(anchors).tensor
    hard = torch.zeros_like(labels, dtype=torch.bool)
    for i, labels_i in enumerate(labels):
        rows = (labels_i >= 0).nonzero().squeeze(1)
        signed = signed_logits(logits[i][rows], labels_i[rows])
        losses = weights[0] * F.softplus(signed).sum(dim=1)
        foreground = (labels_i[rows] < logits.shape[2]).nonzero().squeeze(1)
        fg_rows = rows[foreground]
        losses[foreground] += weights[1] * box_losses(
            head.box2box_transform,
            boxes[fg_rows],
            deltas[i][fg_rows],
            gt_boxes[i][fg_rows],
            head.box_reg_loss_type,
            head.smooth_l1_beta,
        )
        hard[i, rows[hard_examples(losses, boxes[rows], num, nms_thresh)]] = True
    return hard


def require_hard(where, num, nms_thresh, num_key="hard_per_image"):
    """Raises BadInput unless the two say which samples are hard."""
    if type(num) is not int or num < 1:
        raise BadInput(f"{where}.{num_key}={num!r}: give a whole number from 1 up")
    require_number(f"{where}.hard_nms_thresh", nms_thresh, 0, 1)
