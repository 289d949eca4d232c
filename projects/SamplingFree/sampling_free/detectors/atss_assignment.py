"""ATSS: which anchors are foreground, from the statistics of each object's closest anchors.

    L levels   R anchors of all levels   G objects of an image

For each object: its k closest anchors of every level are the candidates; those whose IoU is at
least mean + standard deviation of the candidates' IoUs, and whose center lies in the object, are
foreground. Of several objects an anchor takes the one that it overlaps most.

Source: Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive
Training Sample Selection", arXiv 1912.02424, algorithm 1. No network takes part, so that the prior
can be counted exactly. Every tie has a rule and every sum an order, so that ``sparse/atss.py``,
which counts, finds the very same anchors.
"""

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou, pairwise_point_box_distance
from torch import Tensor


@torch.no_grad()
def atss_match(levels: list[Boxes], gt_boxes: Boxes, topk: int = 9) -> Tensor:
    """Assigns anchors to objects as ATSS does.

    Args:
        levels: L times the anchors of a level, pixels.
        gt_boxes: (G, 4), pixels.
        topk: k, candidates of each level; of equally close ones the first.

    Returns:
        (R,) index of the object of each anchor, -1 for background.
    """
    anchors = Boxes.cat(levels)
    if len(gt_boxes) == 0:
        return anchors.tensor.new_full((len(anchors),), -1, dtype=torch.long)
    centers = anchors.get_centers()
    x, y = (a[:, None] - b for a, b in zip(gt_boxes.get_centers().T, centers.T))  # (G, R)
    # A float >= 0 is in the order of its bits; with the index in the lower half no two are equal,
    # of which topk would choose by a rule of its own.
    keys = x.square_().add_(y.square_()).view(torch.int32).long()
    keys <<= 32
    keys += torch.arange(len(anchors), device=keys.device)
    closest = [
        level.topk(min(topk, level.shape[1]), largest=False).values
        for level in keys.split([len(x) for x in levels], dim=1)
    ]
    candidates = torch.cat(closest, dim=1).T & 0xFFFFFFFF  # (L * k, G)

    ious = pairwise_iou(anchors, gt_boxes)  # (R, G)
    # In float64: of equal overlaps rounding could put the mean above them all.
    of_candidates = ious.gather(0, candidates).double()
    positive = stand_out(of_candidates)

    inside = pairwise_point_box_distance(centers, gt_boxes).amin(dim=2) > 0  # (R, G)
    positive &= inside.gather(0, candidates)
    quality = torch.full_like(ious, -1).scatter(
        0, candidates, torch.where(positive, of_candidates, -1.0).to(ious.dtype)
    )
    best, indices = quality.max(dim=1)
    return torch.where(best >= 0, indices, -1)


def stand_out(overlaps: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """Which overlaps are at least their mean plus their standard deviation.

    The deviation is that of a sample, as in the authors' code; 0 for a single candidate.

    Args:
        overlaps: (C, G) float64, of C candidates of each object.

    Returns:
        (C, G) bool.
    """
    num = len(overlaps)
    above = overlaps - _sum_of_rows(overlaps) / num
    squares = above * above
    return (above >= 0) & (squares >= _sum_of_rows(squares) / max(num - 1, 1))


def _sum_of_rows(rows):
    """(G,) from (C, G), by halves: library sums take an order that hangs on the shape."""
    while len(rows) > 1:
        half = len(rows) // 2
        sums = rows[:half] + rows[half : 2 * half]
        if len(rows) % 2:
            sums[0] += rows[-1]
        rows = sums
    return rows[0]
