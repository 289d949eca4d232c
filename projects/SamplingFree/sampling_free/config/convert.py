"""Turns a Detectron2 config sampling-free, in one line:  ``model = convert(model)``.

Classes are exchanged for their sampling-free subclasses, what only the sampling or the focal loss
needed goes, the prior is to be measured, the guide is "gradient" (guides.py) unless there is one,
and the test thresholds come down. Backbone, heads, anchors, class count, data and schedule stay as
they are.

The box losses of an R-CNN become means over the foreground and the four coordinates, as the
authors have them. Detectron2 divides their sums by the number of samples, background included;
divided by the foreground alone the sums are several times larger, the guide makes the
classification losses as large, and a learning rate made for Detectron2's sizes diverges. GIoU and
the like have no coordinates: they are multiplied by the share of foreground that was sampled at
most.
"""

import copy

from detectron2.config import CfgNode
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ..utils.errors import BadInput
from .cfg_node import cfg_node, meta_architecture, plain
from .convert_lazy import convert_model
from .convert_yaml import convert_cfg_node


def convert(cfg, quiet=False):
    """Makes the config of a RetinaNet, an FCOS, an ATSS, a PAA or an R-CNN sampling-free.

    Args:
        cfg (DictConfig or CfgNode): a whole LazyConfig, or its ``model`` node; or a CfgNode.
        quiet (bool): do not print what has changed.

    Returns:
        DictConfig or CfgNode: a changed copy; the argument is left as it is. What is
        sampling-free already stays.

    Raises:
        BadInput: names the first thing that cannot be converted.
    """
    changes = []
    if isinstance(cfg, CfgNode):
        converted = convert_cfg_node(cfg, changes)
    elif isinstance(cfg, DictConfig) and ("model" in cfg or "_target_" in cfg):
        converted = copy_node(cfg)
        with read_write(converted), open_dict(converted):
            model = converted if "_target_" in converted else converted.model
            if is_of_yaml(model):
                converted.cfg = plain(convert_cfg_node(cfg_node(converted.cfg), changes))
            else:
                convert_model(model, changes)
    else:
        raise BadInput(
            f"convert() takes a LazyConfig, its model node or a CfgNode, not {type(cfg).__name__}"
        )
    if not quiet and comm.is_main_process():
        print("\n  ".join(["Made sampling-free:", *(changes or ["nothing left to change"])]))
    return converted


def copy_node(cfg):
    """A copy of a node within a copy of all that it may refer to."""
    key = cfg._get_full_key("")
    root = copy.deepcopy(cfg._get_root())
    if not key:
        return root
    copied = OmegaConf.select(root, key)
    if OmegaConf.select(cfg._get_root(), key) is not cfg:
        # A copy that was made before; OmegaConf leaves it the parent of what it was made of.
        parent = copied._get_parent()
        copied = copy.deepcopy(cfg)
        copied._set_parent(parent)
    return copied


def is_of_yaml(model):
    """Whether a model node stands for a YAML config, as in the config.yaml that a run saves."""
    name = f"{meta_architecture.__module__}.{meta_architecture.__qualname__}"
    target = model.get("_target_", None) if isinstance(model, DictConfig) else None
    return target in (meta_architecture, name)
