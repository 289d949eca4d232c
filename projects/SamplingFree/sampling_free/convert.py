"""Turns a Detectron2 config sampling-free, in one line:  ``model = convert(model)``.

Classes are exchanged for their sampling-free subclasses, what only the sampling or the focal loss
needed goes, the prior is to be measured and the test thresholds come down. Backbone, heads,
anchors, class count, data and schedule stay as they are.

The box losses of an R-CNN become means over the foreground and the four coordinates, as the
authors have them. Detectron2 divides their sums by the number of samples, background included;
divided by the foreground alone the sums are several times larger, the guide makes the
classification losses as large, and a learning rate made for Detectron2's sizes diverges.
"""

import copy

from detectron2.config import CfgNode, instantiate
from detectron2.modeling import GeneralizedRCNN, PanopticFPN, ProposalNetwork, RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    StandardROIHeads,
)
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from .datasets import target_of
from .detectors.bias import AUTO
from .detectors.cascade import SamplingFreeCascadeROIHeads
from .detectors.fcos import SamplingFreeFCOS
from .detectors.retinanet import SamplingFreeRetinaNet
from .detectors.roi_heads import (
    SamplingFreeFastRCNNOutputLayers,
    SamplingFreeRes5ROIHeads,
    SamplingFreeStandardROIHeads,
)
from .detectors.rpn import SamplingFreeRPN
from .errors import BadInput
from .yaml_config import add_sampling_free_config, cfg_node, meta_architecture, plain

# The authors' final code. FCOS compares it with sqrt(class score * centerness).
SCORE_THRESH = 1e-3
FCOS_SCORE_THRESH = round(SCORE_THRESH**0.5, 4)
COORDINATE = 0.25  # makes a sum over the four coordinates a mean

DENSE = {RetinaNet: SamplingFreeRetinaNet, FCOS: SamplingFreeFCOS}
RCNNS = (GeneralizedRCNN, PanopticFPN, ProposalNetwork)
PROPOSALS = {RPN: SamplingFreeRPN}
ROI_HEADS = {
    StandardROIHeads: SamplingFreeStandardROIHeads,
    CascadeROIHeads: SamplingFreeCascadeROIHeads,
    Res5ROIHeads: SamplingFreeRes5ROIHeads,
}
PREDICTORS = {FastRCNNOutputLayers: SamplingFreeFastRCNNOutputLayers}
# Detectron2's heads, whose classification layers are known to have a bias.
HEADS = (RetinaNetHead, FCOSHead, StandardRPNHead)


def convert(cfg, quiet=False):
    """Makes the config of a RetinaNet, an FCOS or an R-CNN sampling-free.

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
        converted = _convert_yaml(cfg, changes)
    elif isinstance(cfg, DictConfig) and ("model" in cfg or "_target_" in cfg):
        converted = _copy(cfg)
        with read_write(converted), open_dict(converted):
            model = converted if "_target_" in converted else converted.model
            if _is_of_yaml(model):
                converted.cfg = plain(_convert_yaml(cfg_node(converted.cfg), changes))
            else:
                _convert_model(model, changes)
    else:
        raise BadInput(
            f"convert() takes a LazyConfig, its model node or a CfgNode, not {type(cfg).__name__}"
        )
    if not quiet:
        print("\n  ".join(["Made sampling-free:", *(changes or ["nothing left to change"])]))
    return converted


def _copy(cfg):
    """A copy of a node within a copy of all that it may refer to."""
    key = cfg._get_full_key("")
    root = copy.deepcopy(cfg._get_root())
    return OmegaConf.select(root, key) if key else root


def _is_of_yaml(model):
    """Whether a model node stands for a YAML config, as in the config.yaml that a run saves."""
    name = f"{meta_architecture.__module__}.{meta_architecture.__qualname__}"
    target = model.get("_target_", None) if isinstance(model, DictConfig) else None
    return target in (meta_architecture, name)


class _Node:
    """A call of a LazyConfig that notes its changes."""

    def __init__(self, node, where, changes):
        if not isinstance(node, DictConfig) or "_target_" not in node:
            raise BadInput(f"{where}: is {_name(type(node))}, no call (L(...)) to convert")
        self.node, self.where, self.changes = node, where, changes
        try:
            self.target = target_of(node)
        except Exception as e:  # whatever the import of a user's module raises
            raise BadInput(
                f"{where}._target_ = {node._target_}: cannot be imported ({e})"
            ) from None

    def child(self, key):
        return _Node(self.node[key], f"{self.where}.{key}", self.changes)

    def children(self, key):
        """Those of a list, or the one child."""
        value = self.node[key]
        if not isinstance(value, ListConfig):
            return [self.child(key)]
        return [_Node(x, f"{self.where}.{key}[{i}]", self.changes) for i, x in enumerate(value)]

    def swap(self, table):
        """Exchanges the target; False if it was exchanged before."""
        if isinstance(self.target, type) and issubclass(self.target, tuple(table.values())):
            return False
        if self.target not in table:
            raise BadInput(self.refusal(table))
        self.changes.append(f"{self.where}: {_name(self.target)} -> {_name(table[self.target])}")
        self.node._target_ = table[self.target]
        return True

    def refusal(self, table):
        line = f"{self.where}._target_ = {_name(self.target)}: cannot be converted"
        for base, new in table.items():
            if isinstance(self.target, type) and issubclass(self.target, base):
                own = sorted(k for k, v in vars(self.target).items() if callable(v))
                return (
                    f"{line}: a {base.__name__} with its own {', '.join(own) or 'name'}; derive "
                    f"it from sampling_free.{new.__name__} by hand"
                )
        return f"{line}; known: {', '.join(_name(x) for x in table)}"

    def set(self, key, value):
        old = self.node.get(key, "(none)")
        if old != value:
            self.changes.append(f"{self.where}.{key}: {old} -> {value}")
            self.node[key] = value

    def lower(self, key, limit, default):
        if self.node.get(key, default) > limit:
            self.set(key, limit)

    def drop(self, *keys):
        for key in keys:
            if key in self.node:
                self.changes.append(f"{self.where}.{key}: {self.node[key]} -> (dropped)")
                del self.node[key]

    def average_coordinates(self, cls, loc):
        """Gives the box loss the weight of a mean over its coordinates; of GIoU it has none."""
        if self.node.get("box_reg_loss_type", "smooth_l1") != "smooth_l1":
            return
        weight = self.node.get("loss_weight", 1.0)
        is_number = isinstance(weight, (int, float))
        weights = {cls: float(weight), loc: float(weight)} if is_number else dict(weight)
        self.set("loss_weight", {**weights, loc: weights.get(loc, 1.0) * COORDINATE})

    def start_from_the_prior(self):
        if "prior" not in self.node:
            self.set("prior", AUTO)

    def require_bias(self, key, layer):
        """The head at ``key`` must have ``layer``.bias; one of Detectron2's own has."""
        try:
            head = self.node[key]
            if isinstance(head, DictConfig):
                if target_of(head) in HEADS:
                    return
                head = instantiate(head)
        except Exception as e:  # of OmegaConf, or whatever the head raises
            line = f"{type(e).__name__}: {e}"
            raise BadInput(f"{self.where}.{key}: cannot be built ({line})") from None
        try:
            bias = head.get_parameter(f"{layer}.bias")
        except AttributeError:
            bias = None
        if bias is None:
            raise BadInput(
                f"{self.where}.{key} is {_name(type(head))}, which has no parameter {layer}.bias "
                "for the prior to set; give that layer a bias"
            )


def _convert_model(node, changes):
    model = _Node(node, "model", changes)
    if model.target in RCNNS or (
        isinstance(model.target, type) and issubclass(model.target, GeneralizedRCNN)
    ):
        _convert_proposals(model)
        _convert_roi_heads(model)
        return
    known = isinstance(model.target, type) and issubclass(model.target, tuple(DENSE.values()))
    if not known and model.target not in DENSE:
        raise BadInput(model.refusal({**DENSE, **{x: x for x in RCNNS}}))
    model.require_bias("head", "cls_score")
    model.swap(DENSE)
    model.drop("focal_loss_alpha", "focal_loss_gamma")
    model.start_from_the_prior()
    if issubclass(target_of(model.node), SamplingFreeFCOS):
        model.lower("test_score_thresh", FCOS_SCORE_THRESH, 0.2)
    else:
        model.lower("test_score_thresh", SCORE_THRESH, 0.05)


def _convert_proposals(model):
    if model.node.get("proposal_generator", None) is None:  # precomputed proposals
        return
    rpn = model.child("proposal_generator")
    if rpn.swap(PROPOSALS):
        rpn.average_coordinates("loss_rpn_cls", "loss_rpn_loc")
    rpn.require_bias("head", "objectness_logits")
    rpn.drop("batch_size_per_image", "positive_fraction")
    rpn.start_from_the_prior()


def _convert_roi_heads(model):
    if model.node.get("roi_heads", None) is None:  # a proposal network
        return
    heads = model.child("roi_heads")
    heads.swap(ROI_HEADS)
    heads.drop("batch_size_per_image", "positive_fraction")
    key = "box_predictors" if "box_predictors" in heads.node else "box_predictor"
    for predictor in heads.children(key):
        if predictor.node.get("use_fed_loss", False):
            raise BadInput(f"{predictor.where}.use_fed_loss = True: samples the classes; drop it")
        if predictor.swap(PREDICTORS):
            predictor.average_coordinates("loss_cls", "loss_box_reg")
        predictor.lower("test_score_thresh", SCORE_THRESH, 0.0)


def _convert_yaml(cfg, changes):
    names = {old.__name__: new.__name__ for old, new in [*DENSE.items(), *ROI_HEADS.items()]}
    names["RPN"] = SamplingFreeRPN.__name__
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    if "SAMPLING_FREE" not in cfg.MODEL:
        add_sampling_free_config(cfg)

    def assign(key, value):
        node, _, last = key.rpartition(".")
        node = _select(cfg, node)
        if node[last] != value:
            changes.append(f"{key}: {node[last]} -> {value}")
            node[last] = value

    def swap(key, known):
        old = _select(cfg, key)
        if old in names and old in known:
            assign(key, names[old])
            return True
        if old not in [names.get(k, k) for k in known]:
            raise BadInput(f"{key} = {old}: cannot be converted; known: {', '.join(known)}")
        return False

    def average_coordinates(key):
        node = _select(cfg, key)
        if node.BBOX_REG_LOSS_TYPE == "smooth_l1":
            assign(f"{key}.BBOX_REG_LOSS_WEIGHT", node.BBOX_REG_LOSS_WEIGHT * COORDINATE)

    def unused(node, *keys):
        for key in keys:
            changes.append(f"{node}.{key}: {_select(cfg, node)[key]} -> (unused)")

    rcnns = [x.__name__ for x in RCNNS]
    if swap("MODEL.META_ARCHITECTURE", ["RetinaNet", *rcnns, SamplingFreeFCOS.__name__]):
        unused("MODEL.RETINANET", "FOCAL_LOSS_ALPHA", "FOCAL_LOSS_GAMMA")
    if cfg.MODEL.META_ARCHITECTURE in rcnns:
        if swap("MODEL.PROPOSAL_GENERATOR.NAME", ["RPN", "PrecomputedProposals"]):
            average_coordinates("MODEL.RPN")
            unused("MODEL.RPN", "BATCH_SIZE_PER_IMAGE", "POSITIVE_FRACTION")
        thresholds = {}
        if cfg.MODEL.META_ARCHITECTURE != ProposalNetwork.__name__:
            if cfg.MODEL.ROI_BOX_HEAD.get("USE_FED_LOSS", False):
                raise BadInput("MODEL.ROI_BOX_HEAD.USE_FED_LOSS = True: samples the classes")
            if swap("MODEL.ROI_HEADS.NAME", [x.__name__ for x in ROI_HEADS]):
                average_coordinates("MODEL.ROI_BOX_HEAD")
                unused("MODEL.ROI_HEADS", "BATCH_SIZE_PER_IMAGE", "POSITIVE_FRACTION")
            thresholds = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": SCORE_THRESH}
    elif cfg.MODEL.META_ARCHITECTURE == SamplingFreeFCOS.__name__:
        thresholds = {"MODEL.SAMPLING_FREE.FCOS.SCORE_THRESH_TEST": FCOS_SCORE_THRESH}
    else:
        thresholds = {"MODEL.RETINANET.SCORE_THRESH_TEST": SCORE_THRESH}
    for key, limit in thresholds.items():
        assign(key, min(limit, _select(cfg, key)))
    dense = cfg.MODEL.META_ARCHITECTURE not in rcnns
    has_prior = dense or cfg.MODEL.PROPOSAL_GENERATOR.NAME == SamplingFreeRPN.__name__
    if changes and has_prior and cfg.MODEL.SAMPLING_FREE.PRIOR is None:
        changes.append("MODEL.SAMPLING_FREE.PRIOR: None, measured before the first iteration")
    if frozen:
        cfg.freeze()
    return cfg


def _select(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _name(x):
    """A class by its name, of another's code with its module."""
    if not isinstance(x, type):
        return getattr(x, "__qualname__", str(x))
    ours = x.__module__.split(".")[0] in ("detectron2", "sampling_free", "builtins")
    return x.__name__ if ours else f"{x.__module__}.{x.__qualname__}"
