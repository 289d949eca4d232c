"""A RetinaNet that trains on a CPU from random weights: R18 with BN, 64 channels, GN in the head.

Frozen batch normalisation, Detectron2's default, cannot learn from random weights. The images are
small, so the anchors are half as large as usual.
"""

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet

from .retinanet import model

CHANNELS = 64

bottom_up = model.backbone.bottom_up
bottom_up.stem.norm = "BN"
bottom_up.stages = dict(
    _target_=ResNet.make_default_stages, depth=18, block_class=BasicBlock, norm="BN"
)
model.backbone.out_channels = CHANNELS
model.backbone.top_block.in_channels = 512
model.head.input_shape = [ShapeSpec(channels=CHANNELS)] * 5
model.head.conv_dims = [CHANNELS] * 4
model.head.norm = "GN"
model.pixel_std = [57.375, 57.120, 58.395]
model.anchor_generator.sizes = [
    [x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in [16, 32, 64, 128, 256]
]
