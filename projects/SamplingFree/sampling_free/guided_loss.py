"""Idea 2 of the paper: the localisation loss tells the classification loss how large to be.

The localisation loss sees foreground only, so the imbalance cannot touch it. In every iteration
the classification loss is multiplied by

    r = w * L_loc / L_cls            (a number: no gradient flows through it)

and then *has the value* of w times the localisation loss, while its gradient keeps its direction.
Nothing is left to tune: w is 1 for one-stage detectors and the RPN, 2 for the RoI head.

Source: arXiv 1909.04868, section "Guided Loss Scaling". Needs torch only.
"""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import BadInput


def guide_ratio(loss_cls, loss_loc, weight=1.0):
    """r = weight * L_loc / L_cls, without gradient, in float32.

    Args:
        loss_cls (Tensor): classification loss, scalar >= 0.
        loss_loc (Tensor): localisation loss, scalar >= 0.
        weight (float): w.

    Returns:
        Tensor: r, a scalar >= 0; 0 where there is no classification loss to scale.
    """
    loss_cls, loss_loc = loss_cls.detach().float(), loss_loc.detach().float()
    return torch.where(loss_cls == 0, torch.zeros_like(loss_cls), weight * loss_loc / loss_cls)


class GuidedLosses(NamedTuple):
    """What :func:`guided_losses` returns; all are scalars.

    Attributes:
        loss_cls: this process' classification loss, scaled by r; to be differentiated.
        loss_loc: this process' localisation loss, or a tuple of several; to be differentiated.
        ratio: r, without gradient, equal on all processes.
        loss_cls_raw: the classification loss before scaling, without gradient, over all processes.
        num_foreground: foreground samples of all processes.
    """

    loss_cls: Tensor
    loss_loc: Tensor
    ratio: Tensor
    loss_cls_raw: Tensor
    num_foreground: Tensor


def guided_losses(
    sum_cls, sum_loc, num_foreground, guide="iteration", weight=1.0, loc_normalizers=None
):
    """Normalises the losses by the foreground samples of *all* processes and applies the guide.

    Without a foreground sample on any process all losses are exact zeros that stay connected to
    the graph, so that DistributedDataParallel finds a gradient for every parameter. A process
    without one in a batch that has some elsewhere contributes its background as usual.

    Args:
        sum_cls (Tensor): classification loss summed over this process' samples, scalar.
        sum_loc (Tensor or tuple[Tensor]): localisation loss summed over this process' foreground,
            scalar; of several (box and centerness, say) the mean is the guide.
        num_foreground (Tensor): N_f of this process' batch, scalar.
        guide (str or float): "iteration", the paper's r; or a constant that stands in for it
            (1.0 leaves the classification loss as it is).
        weight (float): w, used by "iteration".
        loc_normalizers (tuple[Tensor]): what each localisation loss is divided by, summed over
            the processes, in place of N_f.

    Returns:
        GuidedLosses
    """
    sums_loc = (sum_loc,) if isinstance(sum_loc, Tensor) else tuple(sum_loc)
    normalizers = loc_normalizers or (num_foreground,) * len(sums_loc)
    # One reduction of the sums, not of r: a mean of ratios is no ratio of means. In float64, as
    # half precision does not hold the count.
    sums = sum_cls, num_foreground, *sums_loc, *normalizers
    totals = torch.stack([x.detach().double() for x in sums])
    world_size = num_processes()
    if world_size > 1:
        dist.all_reduce(totals)
    total_cls, total_foreground = totals[:2]
    totals_loc, total_normalizers = totals[2:].chunk(2)
    num_or_1 = total_foreground.clamp(min=1)
    normalizers_or_1 = total_normalizers.masked_fill(total_normalizers <= 0, 1)

    if guide == "iteration":
        # L_loc times N_f, as L_cls is: both without their common divisor.
        total_loc = (totals_loc * (num_or_1 / normalizers_or_1)).mean()
        ratio = guide_ratio(total_cls, total_loc, weight)
    else:
        ratio = torch.full_like(total_cls, float(guide)).float()
    ratio = torch.where(total_foreground > 0, ratio, torch.zeros_like(ratio))
    # DistributedDataParallel averages the gradients over processes, hence the factor.
    losses_loc = tuple(x * (world_size / n).to(x.dtype) for x, n in zip(sums_loc, normalizers_or_1))
    return GuidedLosses(
        loss_cls=sum_cls * (ratio * (world_size / num_or_1)).to(sum_cls.dtype),
        loss_loc=losses_loc[0] if isinstance(sum_loc, Tensor) else losses_loc,
        ratio=ratio,
        loss_cls_raw=total_cls / num_or_1,
        num_foreground=total_foreground,
    )


def num_processes():
    """Processes of the training, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def check_guide(guide, key="model.guide"):
    """Returns ``guide`` if it is known, else raises BadInput with the list of those known.

    Args:
        guide (str or float):
        key (str): where a config has it.
    """
    if guide == "iteration":
        return guide
    try:
        constant = float(guide)
    except (TypeError, ValueError):
        constant = math.nan
    if not 0 <= constant < math.inf:
        raise BadInput(
            f"{key}={guide!r} is unknown; known: 'iteration', or a number >= 0 as a constant "
            "(YAML: MODEL.SAMPLING_FREE.GUIDE)"
        )
    return constant
