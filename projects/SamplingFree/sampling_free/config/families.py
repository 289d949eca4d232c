"""Which sampling-free class and which baseline stands for which class of Detectron2's.

And what else a conversion sets; see convert.py.
"""

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

from ..baselines.retinanet import GHMRetinaNet, OHEMRetinaNet
from ..baselines.roi_heads import OHEMStandardROIHeads
from ..baselines.rpn import GHMRPN, OHEMRPN
from ..detectors.atss import ATSS, SamplingFreeATSS
from ..detectors.cascade import SamplingFreeCascadeROIHeads
from ..detectors.fcos import SamplingFreeFCOS
from ..detectors.paa import PAA, SamplingFreePAA
from ..detectors.retinanet import SamplingFreeRetinaNet
from ..detectors.roi_heads import (
    SamplingFreeFastRCNNOutputLayers,
    SamplingFreeRes5ROIHeads,
    SamplingFreeStandardROIHeads,
)
from ..detectors.rpn import SamplingFreeRPN
from ..utils.errors import BadInput

# The authors' final code. FCOS compares it with sqrt(class score * centerness).
SCORE_THRESH = 1e-3
FCOS_SCORE_THRESH = round(SCORE_THRESH**0.5, 4)
COORDINATES = 0.25  # makes a sum over the four coordinates a mean
UNUSABLE_LOSSES = {"use_fed_loss": "samples the classes", "use_sigmoid_ce": "has no prior"}
METHOD = ("sampling_free", "all_samples")  # the variants without sampling, see convert.py

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

# The baselines, by the class of Detectron2 that each replaces.
OHEM = {RetinaNet: OHEMRetinaNet, RPN: OHEMRPN, StandardROIHeads: OHEMStandardROIHeads}
GHM = {RetinaNet: GHMRetinaNet, RPN: GHMRPN}
BASELINES = (*OHEM.values(), *GHM.values())
# Each of these classes to the one of Detectron2, or ATSS or PAA, that it stands for.
STOCK = {
    x: old
    for table in (DENSE, PROPOSALS, ROI_HEADS, PREDICTORS, OHEM, GHM)
    for old, new in table.items()
    for x in (old, new)
}


def dense_variants(stock: type) -> list[str]:
    """The names of the variants of a dense detector."""
    ours = ["ohem"] * (stock in OHEM) + ["ghm"] * (stock in GHM)
    return [*METHOD, "focal", *ours]


def rcnn_variants(has_rpn: bool, roi_heads: type | None) -> list[str]:
    """The names of the variants of an R-CNN.

    Args:
        has_rpn: or else proposals are precomputed.
        roi_heads: of Detectron2; None for an RPN alone.
    """
    ours = ["ohem"] * (roi_heads is None or roi_heads in OHEM) + ["ghm"] * has_rpn
    return [*METHOD, "sampled", *ours]


def require_applies(name: str, applicable: list[str], named: str) -> None:
    """Raises BadInput unless the variant is one of those for what is named."""
    if name not in applicable:
        raise BadInput(
            f"{named}: the variant {name!r} does not apply; those that do: {', '.join(applicable)}"
        )
