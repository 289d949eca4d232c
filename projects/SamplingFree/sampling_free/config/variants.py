"""The method and what it is compared with, by name:  ``cfg = as_variant(cfg, "focal")``.

Each from Detectron2's config, from a sampling-free one, or from another variant. Data, schedule,
backbone, heads and anchors stay as they are; a test threshold too, unless ``convert`` lowers it.
What a conversion drops is lost, such as a focal_loss_gamma of the user's own: from a
sampling-free config a variant gets Detectron2's defaults. To start from Detectron2's config is
better. Another constant weight or a fixed prior needs no name: model.guide=0.002 model.prior=0.01.
"""

from detectron2.config import CfgNode
from detectron2.utils import comm
from omegaconf import DictConfig, open_dict, read_write

from ..utils.errors import BadInput
from .cfg_node import cfg_node, plain
from .convert import copy_node, is_of_yaml
from .variants_lazy import vary_model
from .variants_yaml import vary_cfg_node

VARIANTS = {
    "sampling_free": "every sample, measured prior, guided classification loss: the method",
    "all_samples": "every sample and measured prior, but a constant weight of 1, not guided",
    "focal": "focal loss, as Detectron2 has it: RetinaNet, FCOS, ATSS, PAA",
    "sampled": "biased sampling, as Detectron2 has it: R-CNNs",
    "ohem": "online hard example mining, arXiv 1604.03540: RetinaNet, Faster and Mask R-CNN",
    "ghm": "gradient harmonising, GHM-C, arXiv 1811.05181: RetinaNet, the RPN of an R-CNN",
}


def as_variant(cfg, name, quiet=False):
    """Turns a config of a RetinaNet, an FCOS, an ATSS, a PAA or an R-CNN into a variant.

    Args:
        cfg (DictConfig or CfgNode): a whole LazyConfig, its ``model`` node, or the node of an RPN
            or of RoI heads alone; or a CfgNode.
        name (str): a key of ``VARIANTS``.
        quiet (bool): do not print what has changed.

    Returns:
        DictConfig or CfgNode: a changed copy; the argument is left as it is.

    Raises:
        BadInput: for an unknown name, which lists those known, and for a detector to which the
            variant does not apply, which lists those that do.
    """
    if not isinstance(name, str) or name not in VARIANTS:
        raise BadInput(f"variant {name!r} is unknown; known: {', '.join(VARIANTS)}")
    changes = []
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
            f"as_variant() takes a LazyConfig, a node of one or a CfgNode, not {type(cfg).__name__}"
        )
    if not quiet and comm.is_main_process():
        title = "Made sampling-free:" if name == "sampling_free" else f"Made the variant {name}:"
        print("\n  ".join([title, *(changes or ["nothing left to change"])]))
    return varied
