"""What lets a detector train on a CPU from random weights: R18 with BN and 64 channels.

Frozen batch normalization, Detectron2's default, cannot learn from random weights.
"""

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet

CHANNELS = 64


def small_backbone(model):
    """Changes the FPN of a model node in place."""
    bottom_up = model.backbone.bottom_up
    bottom_up.stem.norm = "BN"
    bottom_up.stages = dict(
        _target_=ResNet.make_default_stages, depth=18, block_class=BasicBlock, norm="BN"
    )
    model.backbone.out_channels = CHANNELS
    model.pixel_std = [57.375, 57.120, 58.395]


def small_point_head(model):
    """Fits the head of an FCOS, ATSS or PAA node, in place, to the small backbone."""
    model.backbone.top_block.in_channels = CHANNELS  # of p5
    model.head.input_shape = [ShapeSpec(channels=CHANNELS)] * 5
    model.head.conv_dims = [CHANNELS] * 4
