"""Sigmoid cross entropy over *every* sample and class: nothing sampled, nothing re-weighted.

    N images   R anchors (or points) of all levels   K classes

    sum over valid rows of  softplus(x),  with -x at the one right class of each foreground row

No target tensor is needed. And it is exact where ``F.binary_cross_entropy_with_logits`` is not:
that computes x - logsigmoid(x), which cancels at the scores near the prior. With all logits at
logit(1e-5) its float32 sum is 4.6 % off, with 1e-7 it is zero. Its gradient is right, but the
guide divides by the value (measured in tests/test_classification_loss.py).
"""

import torch
from torch.nn import functional as F


def sigmoid_bce_all(logits, labels):
    """Binary cross entropy summed over all non-ignored rows and all classes, in float32.

    Args:
        logits (Tensor): (..., R, K), any floating type; computed in float32 whatever it is, also
            under autocast (scores near the prior are subnormal in float16).
        labels (Tensor): (..., R), integer: -1 ignored, 0..K-1 foreground of that class,
            K background.

    Returns:
        Tensor: float32 scalar, connected to ``logits`` even when no row is valid.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}")
    num_classes = logits.shape[-1]
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.reshape(-1, num_classes).float()
        labels = labels.reshape(-1)
        background = F.softplus(logits).sum(dim=1).masked_fill(labels != num_classes, 0).sum()
        rows, signs = _foreground(labels, num_classes)
        return background + F.softplus(signs * logits[rows]).sum()


@torch.no_grad()
def sigmoid_bce_gradient_norm(logits, labels):
    """L1 norm of the gradient of :func:`sigmoid_bce_all` with respect to the logits.

    The gradient is sigmoid(x) - y, so no backward pass is needed. In float32.

    Args:
        logits, labels (Tensor): as in :func:`sigmoid_bce_all`.

    Returns:
        Tensor: float32 scalar >= 0.
    """
    num_classes = logits.shape[-1]
    logits, labels = logits.reshape(-1, num_classes).float(), labels.reshape(-1)
    background = logits.sigmoid().sum(dim=1).masked_fill(labels != num_classes, 0).sum()
    rows, signs = _foreground(labels, num_classes)
    return background + (signs * logits[rows]).sigmoid().sum()


def _foreground(labels, num_classes):
    """Indices (F,) of the foreground rows, and (F, K) -1 at the right class, 1 at the others.

    They are summed apart: softplus(x) - x cancels where the one right class is certain.
    """
    rows = ((labels >= 0) & (labels < num_classes)).nonzero().squeeze(1)
    return rows, 1 - 2 * F.one_hot(labels[rows].long(), num_classes)


@torch.no_grad()
def cross_entropy_gradient_norm(logits, labels):
    """L1 norm of the gradient of summed cross entropy: 2 (1 - p) of each row's right class.

    The gradient is softmax(x) - y: 1 - p at the right class, p at each of the others.

    Args:
        logits (Tensor): (R, K + 1).
        labels (Tensor): (R,) in 0..K; what is negative is ignored.

    Returns:
        Tensor: float32 scalar >= 0.
    """
    rows = (labels >= 0).nonzero().squeeze(1)
    logits, right = logits[rows].float(), labels[rows].long()
    others = logits.scatter(1, right.unsqueeze(1), -torch.inf)
    # 1 - p by its logarithm: exact where p is almost 1.
    log_rest = others.logsumexp(dim=1) - logits.logsumexp(dim=1)
    return 2 * log_rest.exp().sum()
