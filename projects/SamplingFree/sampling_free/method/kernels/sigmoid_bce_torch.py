"""The kernel in plain PyTorch, for CPUs and wherever Triton is missing.

The logits are read in the order in which they lie in memory, as a sum does not care, and in
pieces that stay in the cache. What is not background is known by its offset.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import anchors_and_classes

PIECE = 1 << 20  # logits; of those tried between 2^15 and 2^21 the fastest
FOLDS = 4


Levels = Sequence[Tensor]


class Targets(NamedTuple):
    """Offsets (int64) into the memory of a level.

    Attributes:
        positive (Tensor): of the right class of each foreground row.
        special (Tensor): sorted; of these, and of all classes of the ignored rows.
    """

    positive: Tensor
    special: Tensor


def find_targets(levels: Levels, labels: Tensor) -> list[Targets]:
    """Finds the targets of each level; see the package."""
    num_anchors, num_classes = anchors_and_classes(levels, labels)
    images, rows = (labels != num_classes).nonzero(as_tuple=True)
    classes, targets, start = labels[images, rows].long(), [], 0
    for x in levels:
        stop = start + x.shape[2] * x.shape[3] * num_anchors
        here = (rows >= start) & (rows < stop)
        targets.append(_offsets(x, images[here], rows[here] - start, classes[here], num_classes))
        start = stop
    return targets


def _offsets(x: Tensor, images: Tensor, rows: Tensor, classes: Tensor, num_classes: int) -> Targets:
    num_anchors = x.shape[1] // num_classes
    places, anchors = rows // num_anchors, rows % num_anchors
    of_image, of_channel, of_y, of_x = x.stride()
    offsets = (
        images * of_image
        + anchors * num_classes * of_channel
        + places // x.shape[3] * of_y
        + places % x.shape[3] * of_x
    )
    is_foreground = (classes >= 0) & (classes < num_classes)
    positive = offsets[is_foreground] + classes[is_foreground] * of_channel
    channels = torch.arange(num_classes, device=x.device) * of_channel
    ignored = (offsets[~is_foreground].unsqueeze(1) + channels).flatten()
    return Targets(positive, torch.cat([positive, ignored]).sort().values)


def total_loss(levels: Levels, targets: Sequence[Targets]) -> Tensor:
    """Sums the loss; see the package."""
    return _total(levels, targets, F.softplus, _softplus_sum)


def gradient_norm(levels: Levels, targets: Sequence[Targets]) -> Tensor:
    """Sums the size of the gradient; see the package."""
    return _total(levels, targets, torch.sigmoid, _sigmoid_sum)


def _total(
    levels: Levels,
    targets: Sequence[Targets],
    of_positive: Callable[[Tensor], Tensor],
    sum_of_piece: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    sums = []
    for x, (positive, special) in zip(levels, targets):
        flat = _in_memory_order(x)
        sums.append(of_positive(-flat[positive].float()).sum())
        sums += [sum_of_piece(*piece) for piece in _pieces(flat, special)]
    return torch.stack(sums).sum(dtype=torch.float64).float()


def gradients(levels: Levels, targets: Sequence[Targets], scale: Tensor) -> list[Tensor]:
    """Computes the gradient of each level; see the package."""
    return [_gradient(x, t.positive, t.special, scale) for x, t in zip(levels, targets)]


def _gradient(x: Tensor, positive: Tensor, special: Tensor, scale: Tensor) -> Tensor:
    result = torch.empty_like(x)
    flat, flat_result = _in_memory_order(x), _in_memory_order(result)
    for piece, out in zip(flat.split(PIECE), flat_result.split(PIECE)):
        is_float = piece.dtype == torch.float32
        piece = piece.float()
        # This is scale * sigmoid(x), in one pass over the memory.
        torch.ops.aten.softplus_backward.grad_input(
            scale.expand_as(piece), piece, 1.0, 20.0, grad_input=out if is_float else piece
        )
        if not is_float:
            out.copy_(piece)
    flat_result.index_fill_(0, special, 0)
    flat_result[positive] = (-scale * torch.sigmoid(-flat[positive].float())).to(x.dtype)
    return result


def _in_memory_order(x: Tensor) -> Tensor:
    """A view (numel,) of a dense tensor (N, C, H, W)."""
    return (x if x.is_contiguous() else x.permute(0, 2, 3, 1)).view(-1)


def _pieces(flat: Tensor, special: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields pieces of ``flat``, and the special offsets in each, counted from its start."""
    starts = range(0, len(flat), PIECE)
    ends = torch.tensor([*starts, len(flat)], device=flat.device)
    bounds = torch.searchsorted(special, ends).tolist()
    for start, first, last in zip(starts, bounds, bounds[1:]):
        yield flat[start : start + PIECE], special[first:last] - start


def _sigmoid_sum(x: Tensor, special: Tensor) -> Tensor:
    return torch.sigmoid(x.float()).index_fill_(0, special, 0).sum()


def _softplus_sum(x: Tensor, special: Tensor) -> Tensor:
    """Sum of softplus(x) but for the special places.

    softplus(x) = -log(1 - s) with the score s = sigmoid(x), and a sum of logarithms is the
    logarithm of a product: 16 cost hardly more than one. The product is kept as its difference
    from 1, which is as exact as the scores are.
    """
    columns = -(-len(x) >> FOLDS)
    scores = torch.empty(columns << FOLDS, dtype=torch.float32, device=x.device)
    if x.dtype == torch.float32:
        torch.sigmoid(x, out=scores[: len(x)])
    else:
        scores[: len(x)].copy_(x).sigmoid_()
    scores[len(x) :].zero_()
    scores.index_fill_(0, special, 0)
    folded, one = scores, torch.ones((), dtype=torch.float32, device=x.device)
    for _ in range(FOLDS):
        a, b = folded.chunk(2)
        folded = torch.lerp(a, one, b)  # 1 - (1 - a)(1 - b) = a + b (1 - a)
    # Near 1 the difference from 1 cancels: those columns once more, one by one.
    large = (folded > 0.5).nonzero().squeeze(1)
    total = -torch.log1p(-folded.index_fill_(0, large, 0)).sum()
    if len(large) > 0:
        places = large + columns * torch.arange(1 << FOLDS, device=x.device).unsqueeze(1)
        values = F.softplus(x[places.clamp(max=len(x) - 1)].float())
        total += values.masked_fill_(scores[places] == 0, 0).sum()
    return total
