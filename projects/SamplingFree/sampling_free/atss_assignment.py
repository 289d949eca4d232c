"""ATSS: which anchors are foreground, from the statistics of each object's closest anchors.

    L levels   R anchors of all levels   G objects of an image

For each object: its k closest anchors of every level are the candidates; those whose IoU is at
least mean + standard deviation of the candidates' IoUs, and whose centre lies in the object, are
foreground. Of several objects an anchor takes the one that it overlaps most.

Source: Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive
Training Sample Selection", arXiv 1912.02424, algorithm 1. No network takes part, so that the prior
can be counted exactly.
"""

import torch
from detectron2.structures import Boxes, pairwise_iou, pairwise_point_box_distance


@torch.no_grad()
def atss_match(levels, gt_boxes, topk=9):
    """
    Args:
        levels (list[Boxes]): L times the anchors of a level, pixels.
        gt_boxes (Boxes): (G, 4), pixels.
        topk (int): k, candidates of each level; of equal distances those that torch.topk takes.

    Returns:
        Tensor: (R,) index of the object of each anchor, -1 for background.
    """
    anchors = Boxes.cat(levels)
    if len(gt_boxes) == 0:
        return anchors.tensor.new_full((len(anchors),), -1, dtype=torch.long)
    centers = anchors.get_centers()
    distances = torch.cdist(  # (R, G); of differences, since a product of matrices cancels
        centers, gt_boxes.get_centers(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    candidates, start = [], 0
    for level in distances.split([len(x) for x in levels]):
        closest = level.topk(min(topk, len(level)), dim=0, largest=False).indices  # (k, G)
        candidates.append(closest + start)
        start += len(level)
    candidates = torch.cat(candidates)  # (L * k, G)

    ious = pairwise_iou(anchors, gt_boxes)  # (R, G)
    # In float64: of equal overlaps rounding could put the mean above them all.
    of_candidates = ious.gather(0, candidates).double()
    # The sample's standard deviation, as in the authors' code; 0 for a single candidate.
    std = of_candidates.std(dim=0, correction=min(1, len(candidates) - 1))
    positive = of_candidates >= of_candidates.mean(dim=0) + std

    inside = pairwise_point_box_distance(centers, gt_boxes).amin(dim=2) > 0  # (R, G)
    positive &= inside.gather(0, candidates)
    quality = torch.full_like(ious, -1).scatter(
        0, candidates, torch.where(positive, of_candidates, -1.0).to(ious.dtype)
    )
    best, indices = quality.max(dim=1)
    return torch.where(best >= 0, indices, -1)
