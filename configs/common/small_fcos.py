"""An FCOS that trains on a CPU, with GN in the head, as Detectron2 has it."""

from .fcos import model
from .small_backbone import small_backbone, small_point_head

small_backbone(model)
small_point_head(model)
