"""Sigmoid cross entropy over *every* sample and class: nothing sampled, nothing re-weighted.

    N images   R anchors (or points) of all levels   K classes   A anchors at each of H x W places

    sum over valid rows of  softplus(x),  with -x at the one right class of each foreground row

The order of a sum does not matter, so that the outputs of the head are read as they lie in memory:
they are not permuted, concatenated or masked, and no target tensor is made. Between forward and
backward nothing is kept but the logits themselves; the backward pass writes their gradient once,
sigmoid(x) - y times whatever the loss was multiplied by afterwards: the guide's r, 1 / N_f, the
factor of a GradScaler.

And it is exact where ``F.binary_cross_entropy_with_logits`` is not: that computes
x - logsigmoid(x), which cancels at the scores near the prior. With all logits at logit(1e-5) its
float32 sum is 4.6 % off, with 1e-7 it is zero. Its gradient is right, but the guide divides by the
value (measured in tests/test_classification_loss.py).
"""

from typing import Any

import torch
from torch import Tensor

from .kernels import kernel_of


@torch.compiler.disable
def sigmoid_bce_all(logits: Tensor | list[Tensor], labels: Tensor) -> Tensor:
    """Binary cross entropy summed over all non-ignored rows and all classes, in float32.

    For any detector's outputs. Inside ``torch.compile`` it runs as it is, between two graphs.

    Args:
        logits: (..., R, K), or for each level (N, A*K, Hi, Wi) as a
            convolution gives them, the K classes of an anchor side by side; any floating type.
            Computed in float32 whatever it is, also under autocast (scores near the prior are
            subnormal in float16).
        labels: (..., R), or (N, R) of all levels one after another, each ordered by
            place and anchor; integer: -1 ignored, 0..K-1 foreground of that class, K background.

    Returns:
        Float32 scalar, connected to ``logits`` even when no row is valid. It has a first
        derivative only.

    Raises:
        ValueError: if the shapes do not fit.
    """
    levels, labels = _as_levels(logits, labels)
    if not any(x.numel() for x in levels):
        return torch.stack([x.float().sum() for x in levels]).sum()
    loss: Tensor = _SigmoidBCE.apply(labels, *levels)
    return loss


@torch.no_grad()
@torch.compiler.disable
def sigmoid_bce_gradient_norm(logits: Tensor | list[Tensor], labels: Tensor) -> Tensor:
    """L1 norm of the gradient of :func:`sigmoid_bce_all` with respect to the logits.

    The gradient is sigmoid(x) - y, so no backward pass is needed. In float32.

    Args:
        logits, labels: as in :func:`sigmoid_bce_all`.

    Returns:
        Float32 scalar >= 0.
    """
    levels, labels = _as_levels(logits, labels)
    if not any(x.numel() for x in levels):
        return torch.zeros((), device=labels.device)
    kernel = kernel_of(labels)
    with torch.autocast(labels.device.type, enabled=False):
        norm: Tensor = kernel.gradient_norm(levels, kernel.find_targets(levels, labels))
    return norm


class _SigmoidBCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, labels: Tensor, *levels: Tensor) -> Tensor:
        kernel = kernel_of(labels)
        with torch.autocast(labels.device.type, enabled=False):
            targets = kernel.find_targets(levels, labels)
            loss: Tensor = kernel.total_loss(levels, targets)
        ctx.save_for_backward(*levels, labels)
        ctx.kernel, ctx.targets = kernel, targets
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True; once_differentiable would let it pass
            raise RuntimeError("sigmoid_bce_all has no second derivative: no create_graph=True")
        *levels, _ = ctx.saved_tensors
        with torch.autocast(scale.device.type, enabled=False):
            return None, *ctx.kernel.gradients(levels, ctx.targets, scale)


def _as_levels(logits: Tensor | list[Tensor], labels: Tensor) -> tuple[list[Tensor], Tensor]:
    """Both forms of logits as a list of (N, A*K, Hi, Wi), dense in memory; labels as (N, R)."""
    if isinstance(logits, torch.Tensor):
        if logits.shape[:-1] != labels.shape:
            raise ValueError(
                f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}"
            )
        # One image whose places are the rows, in memory with the channels last.
        rows = logits.reshape(-1, logits.shape[-1])
        levels, labels = [rows.t()[None, :, :, None]], labels.reshape(1, -1)
    else:
        levels = list(logits)
        _require_fitting(levels, labels)
    return [_dense(x) for x in levels], labels


def _require_fitting(levels: list[Tensor], labels: Tensor) -> None:
    shapes = [tuple(x.shape) for x in levels]
    if not _fit(shapes, labels.shape):
        raise ValueError(f"levels {shapes} do not fit labels {tuple(labels.shape)}")


def _fit(shapes: list[tuple[int, ...]], labels_shape: torch.Size) -> bool:
    if len(labels_shape) != 2 or not shapes or any(len(s) != 4 for s in shapes):
        return False
    (num_images, num_rows), channels = labels_shape, shapes[0][1]
    if any(s[:2] != (num_images, channels) for s in shapes):
        return False
    num_places = sum(h * w for _, _, h, w in shapes)
    if num_places == 0 or num_rows == 0:
        return num_places == num_rows
    num_anchors, rest = divmod(num_rows, num_places)
    return num_anchors > 0 and rest == 0 and channels % num_anchors == 0


def _dense(x: Tensor) -> Tensor:
    is_dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return x if is_dense else x.contiguous()


@torch.no_grad()
def cross_entropy_gradient_norm(logits: Tensor, labels: Tensor) -> Tensor:
    """L1 norm of the gradient of summed cross entropy: 2 (1 - p) of each row's right class.

    The gradient is softmax(x) - y: 1 - p at the right class, p at each of the others.

    Args:
        logits: (R, K + 1).
        labels: (R,) in 0..K; what is negative is ignored.

    Returns:
        Float32 scalar >= 0.
    """
    rows = (labels >= 0).nonzero().squeeze(1)
    logits, right = logits[rows].float(), labels[rows].long()
    others = logits.scatter(1, right.unsqueeze(1), -torch.inf)
    # 1 - p by its logarithm: exact where p is almost 1.
    log_rest = others.logsumexp(dim=1) - logits.logsumexp(dim=1)
    return 2 * log_rest.exp().sum()
