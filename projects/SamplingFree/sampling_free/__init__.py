"""Object detectors without sampling heuristics, for Detectron2 (arXiv 1909.04868)."""

from .checkpoint import load_trained
from .classification_loss import sigmoid_bce_all
from .convert import convert
from .detectors.atss import ATSS, SamplingFreeATSS
from .detectors.cascade import SamplingFreeCascadeROIHeads
from .detectors.fcos import SamplingFreeFCOS
from .detectors.paa import PAA, SamplingFreePAA
from .detectors.retinanet import SamplingFreeRetinaNet
from .detectors.roi_heads import (
    SamplingFreeFastRCNNOutputLayers,
    SamplingFreeRes5ROIHeads,
    SamplingFreeStandardROIHeads,
)
from .detectors.rpn import SamplingFreeRPN
from .engine import LazyTrainer
from .errors import BadInput
from .guided_loss import guide_ratio, guided_losses
from .guides import make_guide
from .prior import optimal_prior, prior_to_bias, start_loss
from .prior_init import PriorInit
from .yaml_config import add_sampling_free_config

__version__ = "0.1.0"

__all__ = [
    "ATSS",
    "BadInput",
    "LazyTrainer",
    "PAA",
    "PriorInit",
    "SamplingFreeATSS",
    "SamplingFreeCascadeROIHeads",
    "SamplingFreeFCOS",
    "SamplingFreeFastRCNNOutputLayers",
    "SamplingFreePAA",
    "SamplingFreeRPN",
    "SamplingFreeRes5ROIHeads",
    "SamplingFreeRetinaNet",
    "SamplingFreeStandardROIHeads",
    "add_sampling_free_config",
    "convert",
    "guide_ratio",
    "guided_losses",
    "load_trained",
    "make_guide",
    "optimal_prior",
    "prior_to_bias",
    "sigmoid_bce_all",
    "start_loss",
]
