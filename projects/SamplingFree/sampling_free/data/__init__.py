"""Data sets: registration, checks before the training, loaders, and a synthetic set."""

from .check import check_dataset, clean_dicts, require_registered
from .register import register_coco, register_synthetic, register_voc

__all__ = [
    "check_dataset",
    "clean_dicts",
    "register_coco",
    "register_synthetic",
    "register_voc",
    "require_registered",
]
