"""Object detectors without sampling heuristics, for Detectron2 (arXiv 1909.04868)."""

from .baselines.ghm import GHMC
from .baselines.ohem import hard_examples
from .baselines.retinanet import GHMRetinaNet, OHEMRetinaNet
from .baselines.roi_heads import OHEMStandardROIHeads
from .baselines.rpn import GHMRPN, OHEMRPN
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
from .monitor import ImbalanceMonitor
from .prior import optimal_prior, prior_to_bias, start_loss
from .prior_init import PriorInit
from .variants import VARIANTS, as_variant
from .yaml_config import add_sampling_free_config

__version__ = "0.1.0"

__all__ = [
    "ATSS",
    "BadInput",
    "GHMC",
    "GHMRPN",
    "GHMRetinaNet",
    "ImbalanceMonitor",
    "LazyTrainer",
    "OHEMRPN",
    "OHEMRetinaNet",
    "OHEMStandardROIHeads",
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
    "VARIANTS",
    "add_sampling_free_config",
    "as_variant",
    "convert",
    "guide_ratio",
    "guided_losses",
    "hard_examples",
    "load_trained",
    "make_guide",
    "optimal_prior",
    "prior_to_bias",
    "sigmoid_bce_all",
    "start_loss",
]
