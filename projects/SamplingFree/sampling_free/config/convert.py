"""Makes a Detectron2 config sampling-free in one line, ``cfg = convert(cfg)``, or a baseline.

Classes are exchanged for their sampling-free subclasses, what only the sampling or the focal loss
needs is dropped, the prior is to be measured, and the test thresholds come down. Backbone, heads,
anchors, class count, data and schedule stay.

The box losses of an R-CNN become means over the foreground and the four coordinates, as in the
authors' code. Detectron2 divides their sums by the number of samples, background included. Divided
by the foreground alone they are several times larger, the guide makes the classification losses as
large, and a learning rate made for Detectron2's sizes diverges. GIoU and the like have no
coordinates: they are multiplied by the largest share of foreground that was sampled.

``as_variant(cfg, "focal")`` makes a baseline: from Detectron2's config, from a sampling-free one or
from another variant. What a conversion drops is lost: from a sampling-free config a variant gets
Detectron2's hyperparameters. Start from Detectron2's config where you can. Another constant weight
or a fixed prior needs no variant: ``model.guide=0.002 model.prior=0.01``.
"""

import copy

from detectron2.config import CfgNode
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ..utils.errors import BadInput
from ..utils.lazy import target_of
from .cfg_node import cfg_node, meta_architecture, plain
from .lazy_model import vary_model
from .yaml_model import vary_cfg_node

VARIANTS = {
    "sampling_free": "every sample, measured prior, guided classification loss: the method",
    "all_samples": "every sample and measured prior, but a constant weight of 1, not guided",
    "focal": "focal loss, as Detectron2 has it: RetinaNet, FCOS, ATSS, PAA",
    "sampled": "biased sampling, as Detectron2 has it: R-CNNs",
    "ohem": "online hard example mining, arXiv 1604.03540: RetinaNet, Faster and Mask R-CNN",
    "ghm": "gradient harmonizing, GHM-C, arXiv 1811.05181: RetinaNet, the RPN of an R-CNN",
}


def convert(cfg: DictConfig | CfgNode, quiet: bool = False) -> DictConfig | CfgNode:
    """Makes the config of a RetinaNet, an FCOS, an ATSS, a PAA or an R-CNN sampling-free.

    Args:
        cfg: a whole LazyConfig, its ``model`` node, or a CfgNode.
        quiet: print no list of the changes.

    Returns:
        A changed copy. What is sampling-free already stays.

    Raises:
        BadInput: something cannot be converted; names the first such thing.
    """
    return as_variant(cfg, "sampling_free", quiet)


def as_variant(cfg: DictConfig | CfgNode, name: str, quiet: bool = False) -> DictConfig | CfgNode:
    """Makes a variant of a config.

    Args:
        cfg: a whole LazyConfig, its ``model`` node, the node of an RPN or of RoI heads alone, or a
            CfgNode.
        name: a key of ``VARIANTS``.
        quiet: print no list of the changes.

    Returns:
        A changed copy.

    Raises:
        BadInput: the name is unknown, or the variant does not apply to the detector; lists those
            that do.
    """
    if not isinstance(name, str) or name not in VARIANTS:
        raise BadInput(f"variant {name!r} is unknown; known: {', '.join(VARIANTS)}")
    changes: list[str] = []
    if isinstance(cfg, CfgNode):
        varied = vary_cfg_node(cfg, name, changes)
    elif isinstance(cfg, DictConfig) and ("model" in cfg or "_target_" in cfg):
        varied = copy_node(cfg)
        with read_write(varied), open_dict(varied):
            model = varied if "_target_" in varied else varied.model
            if is_of_yaml(model):
                varied.cfg = plain(vary_cfg_node(cfg_node(varied.cfg), name, changes))
            else:
                vary_model(model, name, changes)
    else:
        raise BadInput(
            f"convert() and as_variant() take a LazyConfig, a node of one or a CfgNode, not "
            f"{type(cfg).__name__}"
        )
    if not quiet and comm.is_main_process():
        title = "Made sampling-free:" if name == "sampling_free" else f"Made the variant {name}:"
        print("\n  ".join([title, *(changes or ["nothing left to change"])]))
    return varied


def copy_node(cfg: DictConfig) -> DictConfig:
    """Copies a node within a copy of all that it may refer to."""
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


def is_of_yaml(model: DictConfig) -> bool:
    """Whether a model node stands for a YAML config, as in the config.yaml that a run saves."""
    try:
        return "cfg" in model and target_of(model) is meta_architecture
    except Exception:  # whatever the import of a user's module raises
        return False
