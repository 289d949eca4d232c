"""The guides: what the classification loss is multiplied by. One config key, ``guide``.

    "iteration"   r = w * L_loc / L_cls in every iteration: the paper
    "gradient"    r = w * |g_loc| / |g_cls|: not the losses' values are matched but the sizes of
                  their gradients at the head's outputs (ours)
    "frozen"      r of the first 100 iterations, then constant, with a learned weight of each of
                  these losses: the authors' final code for one-stage detectors
    a number      a constant in the place of r; 1.0 leaves the classification loss as it is

w is 1 for one-stage detectors and the RPN, 2 for the RoI head. "iteration" and "gradient" are one
formula on two magnitudes. The paper (arXiv 1909.04868) blames the magnitude of the *gradient*; the
value of a loss says little about it: that of L1 falls as boxes fit, its gradient does not. A factor
in front of the box loss scales both.
"""

import math

import torch
from torch import nn

from ..utils.errors import BadInput
from .guided_loss import guide_ratio

ITERATION = "iteration"
GRADIENT = "gradient"
FROZEN = "frozen"
RECOMMENDED = GRADIENT  # the default everywhere; see docs/evidence.md


class Guide(nn.Module):
    """Base of the family. Called with

        cls, loc (Tensor): magnitudes per foreground sample over all processes, scalars;
        has_foreground (Tensor): bool; without any, there is nothing to learn from the two,

    a guide returns r, a scalar, without gradient.

    Attributes:
        key (str or float): what a config calls it.
        by_gradient (bool): whether it wants the L1 norms of the gradients for ``loc`` and ``cls``.
    """

    by_gradient = False

    def weigh(self, losses):
        """
        Args:
            losses (list[Tensor]): of this process, the classification loss first, scaled by r.

        Returns:
            tuple[list[Tensor], Tensor or None]: the losses that are minimised, and one more.
        """
        return losses, None

    def extra_repr(self):
        return str(self.key)


class IterationGuide(Guide):
    """r = w * L_loc / L_cls, new in every iteration."""

    key = ITERATION

    def __init__(self, weight=1.0):
        """Args: weight (float): w."""
        super().__init__()
        self.weight = weight

    @torch.jit.unused  # scripted detectors infer
    def forward(self, cls, loc, has_foreground):
        return guide_ratio(cls, loc, self.weight)


class GradientGuide(IterationGuide):
    """r = w * |g_loc| / |g_cls|, new in every iteration; g of a box is a mean over coordinates."""

    key = GRADIENT
    by_gradient = True


class ConstantGuide(Guide):
    """A number that stands in for r, w included."""

    def __init__(self, value):
        super().__init__()
        self.key = value

    @torch.jit.unused
    def forward(self, cls, loc, has_foreground):
        return torch.full_like(cls, self.key).float()


class FrozenGuide(IterationGuide):
    """The authors' final code: r is frozen after a warm-up, and every loss has a learned weight.

        sum_i L_i / (2 sigma_i^2) + sum_i log(sigma_i)

    with L_0 = r * L_cls and the localisation losses after it. In no abstract of theirs; the
    weights are those of Kendall et al., arXiv 1705.07115, equation 10. What is learned here is
    log(sigma), which those advise: a step cannot make sigma negative. The authors learn sigma.

    Buffers ``ratio`` and ``num_batches`` and the parameter ``log_sigmas`` are all that any guide
    adds to a checkpoint; a checkpoint without them loads too.
    """

    key = FROZEN
    WARMUP = 100  # iterations, of the authors

    def __init__(self, weight, num_losses):
        """Args: num_losses (int): the classification loss and the localisation losses."""
        super().__init__(weight)
        self.register_buffer("ratio", torch.tensor(0.0))
        self.register_buffer("num_batches", torch.tensor(0))
        self.log_sigmas = nn.Parameter(torch.zeros(num_losses))

    @torch.jit.unused
    def forward(self, cls, loc, has_foreground):
        # Without a branch on a tensor, for which a GPU would have to wait.
        learns = has_foreground & (self.num_batches < self.WARMUP)
        self.ratio.copy_(torch.where(learns, guide_ratio(cls, loc, self.weight), self.ratio))
        self.num_batches += learns
        return self.ratio.clone()

    def weigh(self, losses):
        factors = torch.exp(-2 * self.log_sigmas) / 2
        weighed = [x * f.to(x.dtype) for x, f in zip(losses, factors)]
        return weighed, self.log_sigmas.sum()

    @torch.no_grad()
    def restart(self):
        """Forgets what it has seen, for training on other data."""
        for x in (self.ratio, self.num_batches, self.log_sigmas):
            x.zero_()

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, *args):
        mine = []
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, mine, *args)


def make_guide(guide, key="model.guide", weight=1.0, num_losses=2):
    """
    Args:
        guide (str or float): "iteration", "gradient", "frozen", or a constant >= 0.
        key (str): where a config has it.
        weight (float): w of all but the constant.
        num_losses (int): the classification loss and the localisation losses.

    Returns:
        Guide

    Raises:
        BadInput: for another guide; lists those known.
    """
    if guide == ITERATION:
        return IterationGuide(weight)
    if guide == GRADIENT:
        return GradientGuide(weight)
    if guide == FROZEN:
        return FrozenGuide(weight, num_losses)
    try:
        constant = math.nan if isinstance(guide, bool) else float(guide)
    except (TypeError, ValueError):
        constant = math.nan
    if not 0 <= constant < math.inf:
        raise BadInput(
            f"{key}={guide!r} is unknown; known: '{ITERATION}', '{GRADIENT}', '{FROZEN}', or a "
            "number >= 0 as a constant (YAML: MODEL.SAMPLING_FREE.GUIDE)"
        )
    return ConstantGuide(constant)


def gradient_norms(cls, loc_losses, *outputs):
    """The magnitudes that "gradient" matches, of this process.

    Args:
        cls (Tensor): L1 norm of the classification loss' gradient, in closed form; see
            classification_loss.py.
        loc_losses (callable): a localisation loss, or a tuple of several, each summed over the
            foreground, from as many arguments as there are ``outputs``.
        outputs (list[Tensor]): for each of these losses what the head predicted for it, (..., D)
            with D coordinates. No gradient of another of these losses flows into it.

    Returns:
        list[Tensor]: scalars, ``cls`` and one for each localisation loss, a mean over D.
    """
    # Of copies, so that it works where the head is frozen and under no_grad too. These losses see
    # the foreground alone: computing them again costs little.
    with torch.enable_grad():
        copies = [[x.detach().float().requires_grad_() for x in xs] for xs in outputs]
        losses = loc_losses(*copies)
        total = sum(losses) if isinstance(losses, tuple) else losses
    # One call, and no retain_graph: torch.compile frees the buffers of its first backward pass.
    gradients = iter(torch.autograd.grad(total, [x for xs in copies for x in xs]))
    return [cls] + [sum(next(gradients).abs().sum() for _ in xs) / xs[0].shape[-1] for xs in copies]
