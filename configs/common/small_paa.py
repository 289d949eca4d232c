"""A PAA that trains on a CPU; as the small ATSS."""

from .paa import model
from .small_backbone import small_backbone, small_point_head

small_backbone(model)
small_point_head(model)
model.anchor_size = 4.0
