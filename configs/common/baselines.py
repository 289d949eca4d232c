"""The baselines: Detectron2's own classes, nothing of them changed, and ATSS and PAA as published.

The test thresholds stay at the lower ones of the sampling-free detectors, so that both are
evaluated alike.
"""

from detectron2 import model_zoo
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers, StandardROIHeads

from sampling_free import (
    ATSS,
    PAA,
    SamplingFreeATSS,
    SamplingFreeFCOS,
    SamplingFreePAA,
    SamplingFreeRetinaNet,
)

BASELINES = {
    SamplingFreeRetinaNet: RetinaNet,
    SamplingFreeFCOS: FCOS,
    SamplingFreeATSS: ATSS,
    SamplingFreePAA: PAA,
}
OURS = ("prior", "guide", "box_reg_loss_weight", "box_weight", "loss_weight")


def focal_baseline(model):
    """Turns the node of a sampling-free dense detector, in place, into the class with focal loss.

    model.test_score_thresh=0.05 is the usual one for RetinaNet, ATSS and PAA, 0.2 for FCOS.
    """
    model._target_ = BASELINES[model._target_]
    for key in OURS:
        model.pop(key, None)
    model.focal_loss_alpha, model.focal_loss_gamma = 0.25, 2.0


def sampled_baseline(model):
    """Turns a sampling-free R-CNN node, in place, into Detectron2's classes with its samples.

    256 anchors an image, half of them foreground at most; 512 proposals, a quarter at most.
    test_score_thresh=0.05 of each box predictor is Detectron2's.
    """
    stock = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    for node, stock_node in (
        (model.proposal_generator, stock.proposal_generator),
        (model.roi_heads, stock.roi_heads),
    ):
        for key in OURS:
            node.pop(key, None)
        for key in ("batch_size_per_image", "positive_fraction"):
            node[key] = stock_node[key]
    model.proposal_generator._target_ = RPN
    cascade = "box_predictors" in model.roi_heads
    model.roi_heads._target_ = CascadeROIHeads if cascade else StandardROIHeads
    predictors = model.roi_heads.box_predictors if cascade else [model.roi_heads.box_predictor]
    for predictor in predictors:
        predictor._target_ = FastRCNNOutputLayers
        predictor.pop("loss_weight", None)
