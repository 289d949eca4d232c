"""Idea 2 of the paper: the localization loss tells the classification loss how large to be.

The localization loss sees foreground only, so the imbalance cannot touch it. In every iteration
the classification loss is multiplied by

    r = w * L_loc / L_cls            (a number: no gradient flows through it)

and then *has the value* of w times the localization loss, while its gradient keeps its direction.
Nothing is left to tune: w is 1 for one-stage detectors and the RPN, 2 for the RoI head.

Source: arXiv 1909.04868, section "Guided Loss Scaling". Other ways to find r are in guides.py.
Needs torch only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from .guides import Guide

# Below float32's end by what a loss is multiplied with besides: processes, float16's scale. Only
# a classification loss of less than 1e-30 comes near, for which it makes no difference.
MAX_RATIO = 1e30


def guide_ratio(loss_cls: Tensor, loss_loc: Tensor, weight: float = 1.0) -> Tensor:
    """r = weight * L_loc / L_cls, without gradient, in float32.

    Args:
        loss_cls: classification loss, scalar >= 0.
        loss_loc: localization loss, scalar >= 0.
        weight: w.

    Returns:
        r, a scalar in [0, MAX_RATIO]; 0 where there is no classification loss to scale.
    """
    loss_cls, loss_loc = loss_cls.detach().float(), loss_loc.detach().float()
    ratio = torch.where(loss_cls == 0, torch.zeros_like(loss_cls), weight * loss_loc / loss_cls)
    return ratio.clamp(max=MAX_RATIO)


class GuidedLosses(NamedTuple):
    """What :func:`guided_losses` returns; all are scalars.

    Attributes:
        loss_cls: this process' classification loss, scaled by r; to be differentiated.
        loss_loc: this process' localization loss, or a tuple of several; to be differentiated.
        ratio: r, without gradient, equal on all processes.
        loss_cls_raw: the classification loss before scaling, without gradient, over all processes.
        num_foreground: foreground samples of all processes.
        loss_guide: one more loss, of a guide that learns; else None.
    """

    loss_cls: Tensor
    loss_loc: Tensor | tuple[Tensor, ...]
    ratio: Tensor
    loss_cls_raw: Tensor
    num_foreground: Tensor
    loss_guide: Tensor | None = None

    def extra(self, name: str) -> dict[str, Tensor]:
        """Returns ``loss_guide`` under that name; an empty dict without one."""
        return {} if self.loss_guide is None else {name: self.loss_guide}


def guided_losses(
    sum_cls: Tensor,
    sum_loc: Tensor | tuple[Tensor, ...],
    num_foreground: Tensor,
    guide: Guide,
    *,
    loc_normalizers: tuple[Tensor, ...] | None = None,
    gradient_norms: Callable[[], Sequence[Tensor]] | None = None,
) -> GuidedLosses:
    """Normalizes the losses by the foreground samples of *all* processes and applies the guide.

    Without a foreground sample on any process all losses are exact zeros that stay connected to
    the graph, so that DistributedDataParallel finds a gradient for every parameter. A process
    without one in a batch that has some elsewhere contributes its background as usual.

    Args:
        sum_cls: classification loss summed over this process' samples, scalar.
        sum_loc: localization loss summed over this process' foreground,
            scalar; of several (box and centerness, say) the mean is the guide.
        num_foreground: N_f of this process' batch, scalar.
        guide: the paper's r, or another of guides.py.
        loc_normalizers: what each localization loss is divided by, summed over
            the processes, in place of N_f.
        gradient_norms: gives the L1 norms of the gradients of ``sum_cls`` and of each
            of ``sum_loc`` at the head's outputs; called only for a guide that matches those.
    """
    sums_loc = (sum_loc,) if isinstance(sum_loc, Tensor) else tuple(sum_loc)
    normalizers = loc_normalizers or (num_foreground,) * len(sums_loc)
    sizes: Sequence[Tensor] = (sum_cls, *sums_loc)
    if guide.by_gradient:
        if gradient_norms is None:
            raise ValueError(f"the guide {guide.key!r} needs gradient_norms")
        sizes = gradient_norms()
    # One reduction of the sums, not of r: a mean of ratios is no ratio of means.
    totals, world_size = sum_over_processes(sum_cls, num_foreground, *sizes, *normalizers)
    total_cls, total_foreground, size_cls = totals[:3]
    sizes_loc, total_normalizers = totals[3:].chunk(2)
    num_or_1 = total_foreground.clamp(min=1)
    normalizers_or_1 = total_normalizers.masked_fill(total_normalizers <= 0, 1)
    has_foreground = total_foreground > 0

    ratio = guide(size_cls / num_or_1, (sizes_loc / normalizers_or_1).mean(), has_foreground)
    ratio = torch.where(has_foreground, ratio, torch.zeros_like(ratio))
    # DistributedDataParallel averages the gradients over processes, hence the factor.
    loss_cls = sum_cls * (ratio * (world_size / num_or_1)).to(sum_cls.dtype)
    losses_loc = [x * (world_size / n).to(x.dtype) for x, n in zip(sums_loc, normalizers_or_1)]
    (loss_cls, *losses_loc), loss_guide = guide.weigh([loss_cls, *losses_loc])
    return GuidedLosses(
        loss_cls=loss_cls,
        loss_loc=losses_loc[0] if isinstance(sum_loc, Tensor) else tuple(losses_loc),
        ratio=ratio,
        loss_cls_raw=total_cls / num_or_1,
        num_foreground=total_foreground,
        loss_guide=None if loss_guide is None else loss_guide * has_foreground,
    )


def sum_over_processes(*scalars: Tensor) -> tuple[Tensor, int]:
    """Sums scalars over all processes, in one reduction.

    Args:
        scalars: S of them, of this process.

    Returns:
        Their sums over all processes, (S,), float64 as half precision does not
        hold a count, without gradient; and the number of processes.
    """
    totals = torch.stack([x.detach().double() for x in scalars])
    world_size = num_processes()
    if world_size > 1:
        dist.all_reduce(totals)
    return totals, world_size


def share_of_count(count: Tensor) -> Tensor:
    """Returns the divisor of a sum over this process' samples.

    Args:
        count: of this process' samples, scalar.

    Returns:
        Float64 scalar > 0: what a sum over them is divided by, so that the gradients which
        DistributedDataParallel averages are those of the mean over the samples of all processes.
    """
    (total,), world_size = sum_over_processes(count)
    share: Tensor = total.clamp(min=1) / world_size
    return share


def num_processes() -> int:
    """Returns the number of processes of the training, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
