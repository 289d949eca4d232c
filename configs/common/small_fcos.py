"""An FCOS that trains on a CPU, with GN in the head, as Detectron2 has it."""

from detectron2.layers import ShapeSpec

from .fcos import model
from .small_backbone import CHANNELS, small_backbone

small_backbone(model)
model.backbone.top_block.in_channels = CHANNELS  # of p5
model.head.input_shape = [ShapeSpec(channels=CHANNELS)] * 5
model.head.conv_dims = [CHANNELS] * 4
