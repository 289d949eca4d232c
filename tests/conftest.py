"""Fixtures that several test files share."""

import torch
from yaml_files import sets, tiny

__all__ = ["sets", "tiny"]

# As LazyTrainer does it on a CPU: else a focal loss that an earlier test has compiled rounds
# otherwise.
torch.jit.set_fusion_strategy([])
