"""Logits, labels and the loss computed anew."""

import torch
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K


def reference(logits, labels):
    """Value and gradient of binary cross entropy on one-hot targets in float64, row by row."""
    num_classes = logits.shape[-1]
    x = logits.detach().double().reshape(-1, num_classes).requires_grad_()
    total = x.sum() * 0
    for row, label in zip(x, labels.reshape(-1).tolist()):
        if label < 0:
            continue
        target = torch.zeros(num_classes, dtype=torch.float64)
        if label < num_classes:
            target[label] = 1
        p = torch.sigmoid(row)
        total = total - (target * p.log() + (1 - target) * torch.sigmoid(-row).log()).sum()
    total.backward()
    return total.item(), x.grad.reshape(logits.shape)


def levels_of(device="cpu", dtype=torch.float32, mean=-2.0):
    """Two levels of 2 images, 2 anchors and 3 classes, and labels (2, 30) of every kind."""
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(2, 6, *size, generator=generator) * 3 + mean for size in [(3, 4), (1, 3)]]
    labels = torch.randint(-1, 4, (2, 30), generator=generator)
    return [x.to(device, dtype).requires_grad_() for x in levels], labels.to(device)


def rows_of(levels):
    """(N, R, K) as Detectron2 makes it of all levels."""
    return torch.cat([permute_to_N_HWA_K(x, 3) for x in levels], dim=1)


def exact_of(levels, labels):
    """Value and gradients at the levels by ``reference``, in float64."""
    copies = [x.detach().cpu().double().requires_grad_() for x in levels]
    rows = rows_of(copies)
    value, gradient = reference(rows, labels.cpu())
    return value, torch.autograd.grad(rows, copies, gradient)
