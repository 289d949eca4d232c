"""ATSS and PAA in slow, literal loops, transcribed from their papers: oracles for the tests.

All in float64. Boxes and anchors are XYXY rows of four numbers.
"""

import math

import numpy as np
import torch

STRIDES = (8, 16, 32, 64, 128)


# Boxes


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def common_area(a, b):
    """Of two boxes, in any kind of number that has an order."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0 * width


def iou(a, b):
    """0 where neither has an area."""
    common = common_area(a, b)
    union = area(a) + area(b) - common
    return common / union if common > 0 else 0 * union


def giou(a, b):
    common = common_area(a, b)
    union = area(a) + area(b) - common
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return common / union - (hull - union) / hull


def center(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def decoded(deltas, anchor):
    """The box that a regression with weights 10, 10, 5, 5 stands for; scalars of torch."""
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x, y = center(anchor)
    x, y = x + deltas[0] / 10 * width, y + deltas[1] / 10 * height
    width, height = width * torch.exp(deltas[2] / 5), height * torch.exp(deltas[3] / 5)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


# Anchors


def square_anchors(size, strides=STRIDES, side=8.0, divisibility=32):
    """Anchors (Hi * Wi, 4) of each level for an image of (height, width), padded by itself."""
    height, width = (-(-n // divisibility) * divisibility for n in size)
    levels = []
    for stride in strides:
        half = side * stride / 2
        centers = [
            ((x + 0.5) * stride, (y + 0.5) * stride)
            for y in range(-(-height // stride))
            for x in range(-(-width // stride))
        ]
        levels.append(np.array([(x - half, y - half, x + half, y + half) for x, y in centers]))
    return levels


# Assignments


def atss_literal(levels, boxes, topk=9):
    """arXiv 1912.02424, algorithm 1: the object of each anchor, -1 for background.

    Args:
        levels (list[ndarray]): anchors (Hi * Wi, 4).
        boxes (ndarray): (G, 4).
    """
    anchors = [a for level in levels for a in level]
    owner, best = [-1] * len(anchors), [-math.inf] * len(anchors)
    for g, box in enumerate(boxes):
        candidates, start = [], 0
        for level in levels:
            distances = [
                (math.dist(center(a), center(box)), start + i) for i, a in enumerate(level)
            ]
            candidates += [i for _, i in sorted(distances)[:topk]]
            start += len(level)
        # Of half the digits, so that the mean of equal ones is exact.
        overlaps = [float(np.float32(iou(anchors[i], box))) for i in candidates]
        num = len(overlaps)
        mean = math.fsum(overlaps) / num
        variance = sum((x - mean) ** 2 for x in overlaps) / max(num - 1, 1)
        for i, overlap in zip(candidates, overlaps):
            x, y = center(anchors[i])
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            if overlap >= mean + math.sqrt(variance) and inside and overlap > best[i]:
                owner[i], best[i] = g, overlap
    return np.array(owner)


def _log_densities(values, weights, means, variances):
    """(n, 2): log of each weighted Gaussian."""
    squares = (values[:, None] - means) ** 2 / variances
    return np.log(weights) - 0.5 * (squares + np.log(2 * math.pi * variances))


def two_gaussians(values):
    """EM for a mixture of two Gaussians in one dimension, from the extremes and unit variances.

    Returns:
        tuple: which component each value belongs to; log density of the mixture.
    """
    weights, variances = np.array([0.5, 0.5]), np.ones(2)
    means, before = np.array([values.min(), values.max()]), -math.inf
    for _ in range(100):
        logs = _log_densities(values, weights, means, variances)
        likelihoods = np.logaddexp(logs[:, 0], logs[:, 1])
        shares = np.exp(logs - likelihoods[:, None])
        totals = shares.sum(axis=0) + 1e-14
        means = (shares * values[:, None]).sum(axis=0) / totals
        variances = (shares * (values[:, None] - means) ** 2).sum(axis=0) / totals + 1e-6
        weights = totals / totals.sum()
        if abs(likelihoods.mean() - before) < 1e-3:
            break
        before = likelihoods.mean()
    logs = _log_densities(values, weights, means, variances)
    return logs.argmax(axis=1), np.logaddexp(logs[:, 0], logs[:, 1])


def split_literal(losses):
    """How many of an object's candidates, in ascending order, are foreground."""
    if len(losses) == 1:
        return 1
    component, density = two_gaussians(losses)
    low = [i for i in range(len(losses)) if component[i] == 0]
    return max(low, key=lambda i: (density[i], -i)) + 1 if low else len(losses)


def paa_literal(losses, objects, sizes, topk=9):
    """arXiv 2007.08103, algorithm 1, from each anchor's loss and the object that it may have."""
    owner = [-1] * len(objects)
    for g in sorted({x for x in objects if x >= 0}):
        candidates, start = [], 0
        for size in sizes:
            mine = [i for i in range(start, start + size) if objects[i] == g]
            candidates += sorted(mine, key=lambda i: losses[i])[:topk]
            start += size
        candidates.sort(key=lambda i: losses[i])
        for i in candidates[: split_literal(np.array([losses[i] for i in candidates]))]:
            owner[i] = g
    return np.array(owner)


def paa_candidates(anchors, boxes, threshold=0.1):
    """The object that each anchor may have: it overlaps none more, and enough or best of all."""
    if len(boxes) == 0:
        return [-1] * len(anchors)
    overlaps = [[iou(a, box) for box in boxes] for a in anchors]
    best = [max(row[g] for row in overlaps) for g in range(len(boxes))]
    objects = []
    for row in overlaps:
        g = max(range(len(boxes)), key=lambda k: row[k])
        wanted = any(row[k] == best[k] for k in range(len(boxes)))
        objects.append(g if row[g] >= threshold or wanted else -1)
    return objects


# Losses


def cross_entropy(logit, target):
    """Binary, of scalars of torch in float64."""
    return -target * logit.sigmoid().log() - (1 - target) * (-logit).sigmoid().log()


def focal(logits, labels, alpha=0.25, gamma=2.0):
    """(..., K) focal loss (arXiv 1708.02002, equation 5) of logits with labels 0..K."""
    right = labels[..., None] == torch.arange(logits.shape[-1])
    p_t = torch.where(right, logits.sigmoid(), (-logits).sigmoid())
    alpha_t = torch.where(right, alpha, 1 - alpha)
    return -alpha_t * (1 - p_t) ** gamma * p_t.log()


def plain_cross_entropy(logits, labels):
    """(..., K): the same without the two factors."""
    right = labels[..., None] == torch.arange(logits.shape[-1])
    return -torch.where(right, logits.sigmoid(), (-logits).sigmoid()).log()


def centerness(anchor, box):
    x, y = center(anchor)
    left, top, right, bottom = x - box[0], y - box[1], box[2] - x, box[3] - y
    horizontal = min(left, right) / max(left, right)
    return math.sqrt(horizontal * min(top, bottom) / max(top, bottom))


def foreground_terms(anchors, deltas, quality, labels, boxes, num_classes, target):
    """[(GIoU loss, quality loss, quality target)] of each foreground anchor, differentiable.

    Args:
        anchors (list[list[float]]): R rows.
        deltas, quality (Tensor): (N, R, 4) and (N, R, 1), float64.
        labels (Tensor): (N, R).
        boxes (Tensor): (N, R, 4) of the matched objects.
        target (str): "centerness" or "iou".
    """
    terms = []
    for n, r in (labels < num_classes).nonzero().tolist():
        box = [float(x) for x in boxes[n, r]]
        predicted = decoded(deltas[n, r], anchors[r])
        if target == "iou":
            wanted = float(iou([x.item() for x in predicted], box))
        else:
            wanted = centerness(anchors[r], box)
        loss = 1 - giou(predicted, box)
        terms.append((loss, cross_entropy(quality[n, r, 0], wanted), wanted))
    return terms


# Inference


def vote_literal(boxes, classes, candidates, scores, candidate_classes):
    """arXiv 2007.08103, equations 8 and 9, one box after the other."""
    voted = []
    for box, c in zip(boxes, classes):
        sums, total = [0.0] * 4, 0.0
        for other, score, k in zip(candidates, scores, candidate_classes):
            overlap = iou(box, other)
            if k == c and overlap > 0.01:
                weight = score * math.exp(-((1 - overlap) ** 2) / 0.025)
                sums = [x + weight * y for x, y in zip(sums, other)]
                total += weight
        voted.append([x / total for x in sums] if total > 0 else list(box))
    return voted


def nms_literal(boxes, scores, classes, threshold):
    """Kept indices, best first: greedy, each class by itself."""
    kept = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all(classes[k] != classes[i] or iou(boxes[k], boxes[i]) <= threshold for k in kept):
            kept.append(i)
    return kept
