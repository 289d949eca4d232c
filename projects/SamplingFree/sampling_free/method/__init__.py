"""The paper: the prior, the guides and the guided classification loss; needs torch alone."""

from .classification_loss import sigmoid_bce_all
from .guided_loss import guide_ratio, guided_losses
from .guides import make_guide
from .prior import class_priors, optimal_prior, prior_to_bias, start_loss

__all__ = [
    "class_priors",
    "guide_ratio",
    "guided_losses",
    "make_guide",
    "optimal_prior",
    "prior_to_bias",
    "sigmoid_bce_all",
    "start_loss",
]
