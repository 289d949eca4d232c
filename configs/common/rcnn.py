"""Sampling-free Faster, Mask and Cascade Mask R-CNN: Detectron2's own models, converted."""

from detectron2 import model_zoo

from sampling_free import convert


def rcnn(name):
    """The converted model node of Detectron2's common/models/NAME.py."""
    return convert(model_zoo.get_config(f"common/models/{name}.py").model, quiet=True)


def without_masks(model):
    """Turns a Mask R-CNN node into a Faster R-CNN, in place."""
    for key in ("mask_in_features", "mask_pooler", "mask_head"):
        del model.roi_heads[key]
    return model
