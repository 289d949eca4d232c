"""The baselines: Detectron2's own classes, nothing of them changed.

The test thresholds stay at the lower ones of the sampling-free detectors, so that both are
evaluated alike.
"""

from detectron2 import model_zoo
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers, StandardROIHeads

OURS = ("prior", "guide", "box_reg_loss_weight", "box_weight", "loss_weight")


def focal_baseline(model):
    """Turns a sampling-free RetinaNet or FCOS node, in place, into Detectron2's class.

    model.test_score_thresh=0.05 is Detectron2's for RetinaNet, 0.2 for FCOS.
    """
    name = "fcos" if "FCOS" in model._target_.__name__ else "retinanet"
    stock = model_zoo.get_config(f"common/models/{name}.py").model
    model._target_ = stock._target_
    for key in OURS:
        model.pop(key, None)
    for key in ("focal_loss_alpha", "focal_loss_gamma"):
        model[key] = stock[key]


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
