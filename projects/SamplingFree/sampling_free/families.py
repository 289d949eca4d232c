"""Which sampling-free class stands for which of Detectron2's, and what else a conversion sets."""

from detectron2.modeling import GeneralizedRCNN, PanopticFPN, ProposalNetwork, RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    StandardROIHeads,
)

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

# The authors' final code. FCOS compares it with sqrt(class score * centerness).
SCORE_THRESH = 1e-3
FCOS_SCORE_THRESH = round(SCORE_THRESH**0.5, 4)
COORDINATES = 0.25  # makes a sum over the four coordinates a mean

# A subclass before its base.
DENSE = {
    RetinaNet: SamplingFreeRetinaNet,
    PAA: SamplingFreePAA,
    ATSS: SamplingFreeATSS,
    FCOS: SamplingFreeFCOS,
}
RCNNS = (GeneralizedRCNN, PanopticFPN, ProposalNetwork)
PROPOSALS = {RPN: SamplingFreeRPN}
ROI_HEADS = {
    StandardROIHeads: SamplingFreeStandardROIHeads,
    CascadeROIHeads: SamplingFreeCascadeROIHeads,
    Res5ROIHeads: SamplingFreeRes5ROIHeads,
}
PREDICTORS = {FastRCNNOutputLayers: SamplingFreeFastRCNNOutputLayers}
# Detectron2's heads, whose classification layers are known to have a bias.
HEADS = (RetinaNetHead, FCOSHead, StandardRPNHead)
