"""A RetinaNet that trains on a CPU, with GN in the head.

The images are small, so the anchors are half as large as usual.
"""

from detectron2.layers import ShapeSpec

from .retinanet import model
from .small_backbone import CHANNELS, small_backbone

small_backbone(model)
model.backbone.top_block.in_channels = 512
model.head.input_shape = [ShapeSpec(channels=CHANNELS)] * 5
model.head.conv_dims = [CHANNELS] * 4
model.head.norm = "GN"
model.anchor_generator.sizes = [
    [x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in [16, 32, 64, 128, 256]
]
