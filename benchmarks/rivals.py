"""Losses over all anchors and classes, from the raw outputs of a head: ours and its rivals.

    N images   L levels   A anchors at each place   K classes   R anchors of all levels

Each takes the levels (N, A*K, Hi, Wi) as convolutions give them and the labels (N, R): -1 ignored,
0..K-1 foreground of that class, K background, ordered by level, place and anchor. Each returns the
sum over all rows that are not ignored.
"""

import functools

import torch
import torchvision
from detectron2.layers import cat
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from fvcore.nn import sigmoid_focal_loss_jit
from torch.nn import functional as F

from sampling_free import sigmoid_bce_all

ALPHA, GAMMA = 0.25, 2.0  # of Detectron2's RetinaNet


def fused(levels, labels, num_classes):
    """Ours."""
    return sigmoid_bce_all(levels, labels)


def focal(levels, labels, num_classes):
    """Detectron2's: fvcore's focal loss, called as its RetinaNet calls it."""
    loss = functools.partial(sigmoid_focal_loss_jit, alpha=ALPHA, gamma=GAMMA, reduction="sum")
    return _as_detectron2(loss, levels, labels, num_classes)


def torchvision_focal(levels, labels, num_classes):
    """The same with torchvision's focal loss, in float32 as fvcore's."""
    focal_loss = torchvision.ops.sigmoid_focal_loss

    def loss(logits, targets):
        return focal_loss(logits.float(), targets.float(), ALPHA, GAMMA, reduction="sum")

    return _as_detectron2(loss, levels, labels, num_classes)


def one_hot_bce(levels, labels, num_classes):
    """The same with plain cross entropy."""

    def loss(logits, targets):
        return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="sum")

    return _as_detectron2(loss, levels, labels, num_classes)


def plain(levels, labels, num_classes):
    """Softplus over everything, minus the logits of the right classes and what is ignored."""
    total = 0
    for x, y in _levels_and_labels(levels, labels, num_classes):
        n, a, _, p = _indices((y >= 0) & (y < num_classes))
        m, b, _, q = _indices(y < 0)
        total = total + F.softplus(x.float()).sum()
        total = total - x[n, a, y[n, a, 0, p], p].float().sum()
        total = total - F.softplus(x[m, b, :, q].float()).sum()
    return total


def compiled(levels, labels, num_classes):
    """torch.compile of the formula, level by level.

    In place of the indices of :func:`plain`, whose number is not known to a compiler, it compares
    the label with every class, which it fuses with the rest.
    """
    classes = torch.arange(num_classes, device=labels.device).view(1, 1, -1, 1)
    formula = _compiled_formula()
    pairs = _levels_and_labels(levels, labels, num_classes)
    return sum(formula(x, y.contiguous(), classes) for x, y in pairs)


LOSSES = {f.__name__: f for f in (fused, focal, torchvision_focal, one_hot_bce, plain, compiled)}


def _as_detectron2(loss, levels, labels, num_classes):
    """``loss`` on what Detectron2's RetinaNet makes of the outputs, alive as long as there."""
    pred_logits = [permute_to_N_HWA_K(x, num_classes) for x in levels]
    valid = labels >= 0
    one_hot = F.one_hot(labels[valid], num_classes=num_classes + 1)[:, :-1]
    return loss(cat(pred_logits, dim=1)[valid], one_hot.to(pred_logits[0].dtype))


def _levels_and_labels(levels, labels, num_classes):
    """Of each level views: logits (N, A, K, P) and labels (N, A, 1, P) of its P places."""
    num_places = [x.shape[2] * x.shape[3] for x in levels]
    num_anchors = levels[0].shape[1] // num_classes
    for x, y in zip(levels, labels.split([num_anchors * p for p in num_places], dim=1)):
        y = y.view(len(y), -1, num_anchors).transpose(1, 2)
        yield x.view(len(x), num_anchors, num_classes, -1), y.unsqueeze(2)


def _indices(mask):
    return mask.nonzero(as_tuple=True)


def _formula(logits, labels, classes):
    logits = logits.float()
    losses = F.softplus(torch.where(labels == classes, -logits, logits))
    return torch.where(labels >= 0, losses, 0).sum()


@functools.lru_cache(maxsize=None)
def _compiled_formula():
    return torch.compile(_formula, dynamic=False)
