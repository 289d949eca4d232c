"""An R-CNN that trains on a CPU: P3 to P6, 64 channels, 256 in the box head.

Anchors are half as large as usual, and 300 proposals of an image are kept in training in place of
1000: the images are small.
"""

from detectron2.layers import ShapeSpec

from .small_backbone import CHANNELS, small_backbone

LEVELS = ["p3", "p4", "p5"]


def small_rcnn(model):
    """Changes an R-CNN node in place; returns it."""
    small_backbone(model)
    model.backbone.bottom_up.out_features = ["res3", "res4", "res5"]
    rpn, heads = model.proposal_generator, model.roi_heads
    rpn.in_features = [*LEVELS, "p6"]
    rpn.head.in_channels = CHANNELS
    rpn.anchor_generator.sizes = [[16], [32], [64], [128]]
    rpn.anchor_generator.strides = [8, 16, 32, 64]
    rpn.post_nms_topk = (300, 100)
    for part in ("box", "mask"):
        if f"{part}_in_features" in heads:
            heads[f"{part}_in_features"] = LEVELS
            heads[f"{part}_pooler"].scales = (1 / 8, 1 / 16, 1 / 32)
    cascade = "box_heads" in heads
    for head in heads.box_heads if cascade else [heads.box_head]:
        head.input_shape = ShapeSpec(channels=CHANNELS, height=7, width=7)
        head.fc_dims = [256, 256]
    for predictor in heads.box_predictors if cascade else [heads.box_predictor]:
        predictor.input_shape = ShapeSpec(channels=256)
    if "mask_head" in heads:
        heads.mask_head.input_shape = ShapeSpec(channels=CHANNELS, width=14, height=14)
        heads.mask_head.conv_dims = [CHANNELS] * 3
    return model
