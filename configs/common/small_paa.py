"""A PAA that trains on a CPU; as the small ATSS."""

from .authors import papers_guide
from .paa import model
from .small_backbone import small_backbone, small_point_head

small_backbone(model)
small_point_head(model)
papers_guide(model)  # with which it was measured, see MODEL_ZOO.md
model.anchor_size = 4.0
