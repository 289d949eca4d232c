"""The losses of RoI heads, computed anew."""

import math

WEIGHTS = (10.0, 10.0, 5.0, 5.0)

SIZE = (64, 96)

KINDS = ["faster", "mask", "keypoint", "c4"]


def cross_entropy(logits, label):
    logits = [float(x) for x in logits]
    top = max(logits)
    return top + math.log(sum(math.exp(x - top) for x in logits)) - logits[label]


def box_targets(proposal, box, weights):
    (x0, y0, x1, y1), (u0, v0, u1, v1) = proposal.tolist(), box.tolist()
    width, height = x1 - x0, y1 - y0
    return [
        weights[0] * ((u0 + u1) / 2 - (x0 + x1) / 2) / width,
        weights[1] * ((v0 + v1) / 2 - (y0 + y1) / 2) / height,
        weights[2] * math.log((u1 - u0) / width),
        weights[3] * math.log((v1 - v0) / height),
    ]


def decoded(proposal, deltas, weights):
    (x0, y0, x1, y1), deltas = proposal.tolist(), deltas.tolist()
    width, height = x1 - x0, y1 - y0
    x = (x0 + x1) / 2 + deltas[0] / weights[0] * width
    y = (y0 + y1) / 2 + deltas[1] / weights[1] * height
    w, h = width * math.exp(deltas[2] / weights[2]), height * math.exp(deltas[3] / weights[3])
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def overlap(a, b):
    """(IoU, GIoU) of two boxes."""
    (x0, y0, x1, y1), (u0, v0, u1, v1) = a, b
    both = max(0, min(x1, u1) - max(x0, u0)) * max(0, min(y1, v1) - max(y0, v0))
    either = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - both
    hull = (max(x1, u1) - min(x0, u0)) * (max(y1, v1) - min(y0, v0))
    return both / either, both / either - (hull - either) / hull


def expected_sums(predictor, predictions, proposals):
    """(sum of cross entropies, sum of box losses, foreground) without any loss weight."""
    logits, deltas = (x.detach().double() for x in predictions)
    num_classes, weights = predictor.num_classes, predictor.box2box_transform.weights
    sum_cls = sum_box = num_foreground = 0
    row = -1
    for instances in proposals:
        for i, label in enumerate(instances.gt_classes.tolist()):
            row += 1
            sum_cls += cross_entropy(logits[row], label)
            if label < num_classes:
                num_foreground += 1
                own = deltas[row]
                if len(own) > 4:
                    own = own[4 * label : 4 * label + 4]
                proposal = instances.proposal_boxes.tensor[i].double()
                box = instances.gt_boxes.tensor[i].double()
                if predictor.box_reg_loss_type == "giou":
                    sum_box += 1 - overlap(decoded(proposal, own, weights), box.tolist())[1]
                    continue
                for d, t in zip(own.tolist(), box_targets(proposal, box, weights)):
                    error, beta = abs(d - t), predictor.smooth_l1_beta
                    sum_box += error**2 / (2 * beta) if error < beta else error - beta / 2
    assert row + 1 == len(logits) == len(deltas)
    return sum_cls, sum_box, num_foreground
