"""Score voting: each detection's box becomes a mean of all boxes that say the same.

Source: arXiv 2007.08103, section 3.4, equations 8 and 9.
"""

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou

SIGMA_SQUARED = 0.025  # of the authors' code
MIN_IOU = 0.01


def vote(detections: Instances, candidates: Instances) -> Boxes:
    """Lets the boxes around a detection vote for its box.

    Args:
        detections: D, after NMS: pred_boxes, scores, pred_classes.
        candidates: P, before NMS, the same fields; the detections are among them.

    Returns:
        (D, 4) means of the candidates of the same class with an IoU above 0.01, weighted
        by p_i = s_i * exp(-(1 - IoU)^2 / sigma^2).
    """
    boxes = detections.pred_boxes.tensor
    ious = pairwise_iou(detections.pred_boxes, candidates.pred_boxes)  # (D, P)
    agree = detections.pred_classes[:, None] == candidates.pred_classes
    # In float64: a product of matrices in bfloat16 or TF32 would move boxes by pixels.
    with torch.autocast(boxes.device.type, enabled=False):
        weights = torch.exp(-((1 - ious.double()) ** 2) / SIGMA_SQUARED) * candidates.scores
        weights = weights * (agree & (ious > MIN_IOU))
        total = weights.sum(dim=1, keepdim=True)
        means = weights @ candidates.pred_boxes.tensor.double() / total
    # A box without an area overlaps nothing, not even itself.
    return Boxes(torch.where(total > 0, means.to(boxes.dtype), boxes))
