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
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..utils.errors import BadInput
from .guided_loss import guide_ratio

ITERATION = "iteration"
GRADIENT = "gradient"
FROZEN = "frozen"
RECOMMENDED = GRADIENT  # the default everywhere; see docs/evidence.md


class Guide(nn.Module):
    """Base of the family: returns r, a scalar without gradient.

    It is called with the magnitudes ``cls`` and ``loc`` per foreground sample over all processes,
    scalars, and ``has_foreground``, a bool: without any there is nothing to learn from the two.

    Attributes:
        key (str or float): what a config calls it.
        by_gradient (bool): whether it wants the L1 norms of the gradients for ``loc`` and ``cls``.
    """

    by_gradient = False

    key: str | float

    def weigh(self, losses: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """Weighs the losses after the scaling by r.

        Args:
            losses: of this process, the classification loss first, scaled by r.

        Returns:
            The losses that are minimized, and one more or None.
        """
        return losses, None

    def extra_repr(self) -> str:
        return str(self.key)


class IterationGuide(Guide):
    """r = w * L_loc / L_cls, new in every iteration."""

    key = ITERATION

    def __init__(self, weight: float = 1.0) -> None:
        """Sets w, the ``weight`` of r."""
        super().__init__()
        self.weight = weight

    @torch.jit.unused  # scripted detectors infer
    def forward(self, cls: Tensor, loc: Tensor, has_foreground: Tensor) -> Tensor:
        return guide_ratio(cls, loc, self.weight)


class GradientGuide(IterationGuide):
    """r = w * |g_loc| / |g_cls|, new in every iteration; g of a box is a mean over coordinates."""

    key = GRADIENT
    by_gradient = True


class ConstantGuide(Guide):
    """A number that stands in for r, w included."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.key = value

    @torch.jit.unused
    def forward(self, cls: Tensor, loc: Tensor, has_foreground: Tensor) -> Tensor:
        return torch.full_like(cls, float(self.key)).float()


class FrozenGuide(IterationGuide):
    """The authors' final code: r is frozen after a warm-up, and every loss has a learned weight.

        sum_i L_i / (2 sigma_i^2) + sum_i log(sigma_i)

    with L_0 = r * L_cls and the localization losses after it. In no abstract of theirs; the
    weights are those of Kendall et al., arXiv 1705.07115, equation 10. What is learned here is
    log(sigma), which those advise: a step cannot make sigma negative. The authors learn sigma.

    Buffers ``ratio`` and ``num_batches`` and the parameter ``log_sigmas`` are all that any guide
    adds to a checkpoint; a checkpoint without them loads too.
    """

    key = FROZEN
    WARMUP = 100  # iterations, of the authors
    ratio: Tensor
    num_batches: Tensor

    def __init__(self, weight: float, num_losses: int) -> None:
        """Makes a learned weight for each loss, the classification loss first."""
        super().__init__(weight)
        self.register_buffer("ratio", torch.tensor(0.0))
        self.register_buffer("num_batches", torch.tensor(0))
        self.log_sigmas = nn.Parameter(torch.zeros(num_losses))

    @torch.jit.unused
    def forward(self, cls: Tensor, loc: Tensor, has_foreground: Tensor) -> Tensor:
        # Without a branch on a tensor, for which a GPU would have to wait.
        learns = has_foreground & (self.num_batches < self.WARMUP)
        self.ratio.copy_(torch.where(learns, guide_ratio(cls, loc, self.weight), self.ratio))
        self.num_batches += learns
        return self.ratio.clone()

    def weigh(self, losses: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        factors = torch.exp(-2 * self.log_sigmas) / 2
        weighed = [x * f.to(x.dtype) for x, f in zip(losses, factors)]
        return weighed, self.log_sigmas.sum()

    @torch.no_grad()
    def restart(self) -> None:
        """Forgets what it has seen, for training on other data."""
        for x in (self.ratio, self.num_batches, self.log_sigmas):
            x.zero_()

    def _load_from_state_dict(  # type: ignore[no-untyped-def]
        self, state_dict, prefix, metadata, strict, missing, *args
    ):
        mine: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, mine, *args)


def make_guide(
    guide: str | float, key: str = "model.guide", weight: float = 1.0, num_losses: int = 2
) -> Guide:
    """Makes the guide that a config names.

    Args:
        guide: "iteration", "gradient", "frozen", or a constant >= 0.
        key: where a config has it.
        weight: w of all but the constant.
        num_losses: the classification loss and the localization losses.

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


def gradient_norms(
    cls: Tensor, loc_losses: Callable[..., Tensor | tuple[Tensor, ...]], *outputs: list[Tensor]
) -> list[Tensor]:
    """Returns the magnitudes that "gradient" matches, of this process.

    Args:
        cls: L1 norm of the classification loss' gradient, in closed form; see
            classification_loss.py.
        loc_losses: gives a localization loss, or a tuple of several, each summed over the
            foreground, from as many arguments as there are ``outputs``.
        outputs: for each of these losses what the head predicted for it, (..., D)
            with D coordinates. No gradient of another of these losses flows into it.

    Returns:
        Scalars, ``cls`` and one for each localization loss, a mean over D.
    """
    # Of copies, so that it works where the head is frozen and under no_grad too. These losses see
    # the foreground alone: computing them again costs little.
    with torch.enable_grad():
        copies = [[x.detach().float().requires_grad_() for x in xs] for xs in outputs]
        losses = loc_losses(*copies)
        total = torch.stack(losses).sum() if isinstance(losses, tuple) else losses
    # One call, and no retain_graph: torch.compile frees the buffers of its first backward pass.
    gradients = iter(torch.autograd.grad(total, [x for xs in copies for x in xs]))
    norms = [torch.stack([next(gradients).abs().sum() for _ in xs]).sum() for xs in copies]
    return [cls, *(norm / xs[0].shape[-1] for norm, xs in zip(norms, copies))]
