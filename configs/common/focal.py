"""The baseline: Detectron2's own RetinaNet with focal loss, nothing of it changed."""

from detectron2 import model_zoo


def focal_baseline(model):
    """Turns a sampling-free RetinaNet node, in place, into Detectron2's class.

    The test threshold stays at the lower one of the sampling-free detector, so that both are
    evaluated alike; model.test_score_thresh=0.05 is Detectron2's.
    """
    stock = model_zoo.get_config("common/models/retinanet.py").model
    model._target_ = stock._target_
    for key in ("prior", "guide", "box_reg_loss_weight"):
        del model[key]
    for key in ("focal_loss_alpha", "focal_loss_gamma"):
        model[key] = stock[key]
