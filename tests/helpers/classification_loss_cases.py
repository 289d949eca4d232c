"""Logits, labels and the loss computed anew."""

import torch
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from torch.nn import functional as F


def reference(logits, labels):
    """Value and gradient of cross entropy on one-hot targets (..., R, K), in float64."""
    x, valid = logits.detach().cpu().double().requires_grad_(), labels.cpu() >= 0
    targets = F.one_hot(labels.cpu()[valid].long(), x.shape[-1] + 1)[:, :-1].double()
    loss = F.binary_cross_entropy_with_logits(x[valid], targets, reduction="sum")
    return loss.item(), torch.autograd.grad(loss, x)[0]


def levels_of(device="cpu", dtype=torch.float32, mean=-2.0):
    """Two levels of 2 images, 2 anchors and 3 classes, and labels (2, 30) of every kind."""
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(2, 6, *size, generator=generator) * 3 + mean for size in [(3, 4), (1, 3)]]
    labels = torch.randint(-1, 4, (2, 30), generator=generator)
    return [x.to(device, dtype).requires_grad_() for x in levels], labels.to(device)


def rows_of(levels, num_classes=3):
    """(N, R, K) as Detectron2 makes it of all levels."""
    return torch.cat([permute_to_N_HWA_K(x, num_classes) for x in levels], dim=1)


def exact_of(levels, labels, num_classes=3):
    """Value and gradients at the levels by ``reference``, in float64."""
    copies = [x.detach().cpu().double().requires_grad_() for x in levels]
    rows = rows_of(copies, num_classes)
    value, gradient = reference(rows, labels)
    return value, torch.autograd.grad(rows, copies, gradient)
