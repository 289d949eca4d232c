"""An ATSS that trains on a CPU. The images are small, so the anchors are half as large as usual."""

from .atss import model
from .small_backbone import small_backbone, small_point_head

small_backbone(model)
small_point_head(model)
model.anchor_size = 4.0
