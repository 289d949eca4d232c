"""The variants of a CfgNode; see convert.py."""

import functools

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, ProposalNetwork
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.proposal_generator import RPN

from ..detectors.atss import SamplingFreeATSS
from ..detectors.fcos import SamplingFreeFCOS
from ..detectors.paa import SamplingFreePAA
from ..detectors.rpn import SamplingFreeRPN
from ..utils.errors import BadInput
from .cfg_node import add_sampling_free_config
from .families import (
    BASELINES,
    COORDINATES,
    DENSE,
    FCOS_SCORE_THRESH,
    GHM,
    METHOD,
    OHEM,
    PROPOSALS,
    RCNNS,
    ROI_HEADS,
    SCORE_THRESH,
    STOCK,
    UNUSABLE_LOSSES,
    dense_variants,
    rcnn_variants,
    require_applies,
)

CLASSES = {x.__name__: x for x in STOCK}
DENSE_IN_YAML = {old: new for old, new in DENSE.items() if old is not FCOS}  # it has no FCOS
ARCHITECTURE = "MODEL.META_ARCHITECTURE"
PROPOSAL_GENERATOR = "MODEL.PROPOSAL_GENERATOR.NAME"
ROI_HEADS_NAME = "MODEL.ROI_HEADS.NAME"
PRIOR, GUIDE = "MODEL.SAMPLING_FREE.PRIOR", "MODEL.SAMPLING_FREE.GUIDE"
# Where a conversion shrinks the box loss.
LOSS_WEIGHTS = {
    PROPOSAL_GENERATOR: "MODEL.RPN.BBOX_REG_LOSS_WEIGHT",
    ROI_HEADS_NAME: "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT",
}
# The node of each detector that Detectron2 has no YAML keys for.
POINTS = {
    SamplingFreeFCOS.__name__: "FCOS",
    SamplingFreeATSS.__name__: "ATSS",
    SamplingFreePAA.__name__: "PAA",
}


def vary_cfg_node(cfg: CfgNode, name: str, changes: list[str]) -> CfgNode:
    """Makes a variant of a CfgNode.

    Args:
        cfg: left as it is.
        name: of the variant.
        changes: gets a line for each change.

    Returns:
        Frozen if ``cfg`` is.

    Raises:
        BadInput: the variant does not apply, or something is not known; names the first such thing.
    """
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    nodes = _Nodes(cfg, changes)
    if name in METHOD:
        nodes.make_sampling_free(name)
    elif nodes.stock(ARCHITECTURE) in DENSE:
        nodes.vary_dense(name)
    elif nodes.is_rcnn():
        nodes.vary_rcnn(name)
    else:
        raise BadInput(nodes.unknown(ARCHITECTURE, (*DENSE_IN_YAML, *RCNNS)))
    if frozen:
        cfg.freeze()
    return cfg


def select(cfg: CfgNode, key: str) -> object:
    """Returns the value of a key such as "MODEL.RPN.NMS_THRESH"."""
    return functools.reduce(lambda node, part: node[part], key.split("."), cfg)


class _Nodes:
    """A CfgNode that notes its changes."""

    def __init__(self, cfg, changes):
        self.cfg, self.changes = cfg, changes

    def assign(self, key, value):
        node, _, last = key.rpartition(".")
        node = select(self.cfg, node)
        if node[last] != value:
            self.changes.append(f"{key}: {node[last]} -> {value}")
            node[last] = value

    def unused(self, *keys):
        self.changes.extend(f"{key}: {select(self.cfg, key)} -> (unused)" for key in keys)

    def cls(self, key):
        return CLASSES.get(select(self.cfg, key))

    def stock(self, key):
        return STOCK.get(self.cls(key))

    def is_rcnn(self):
        """One of Detectron2's, or a GeneralizedRCNN of the user's own."""
        name = self.cfg.MODEL.META_ARCHITECTURE
        cls = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
        return cls in RCNNS or isinstance(cls, type) and issubclass(cls, GeneralizedRCNN)

    def swap(self, key, table, known=()):
        """Exchanges the class; False if it was exchanged before, or is one of the known names."""
        name = select(self.cfg, key)
        if self.cls(key) in table:
            self.assign(key, table[self.cls(key)].__name__)
            return True
        if self.cls(key) not in table.values() and name not in known:
            names = ", ".join([*(x.__name__ for x in table), *known])
            raise BadInput(f"{key} = {name}: cannot be converted; known: {names}")
        return False

    def shrink_box_loss(self, key, positive_fraction):
        smooth_l1 = select(self.cfg, key).BBOX_REG_LOSS_TYPE == "smooth_l1"
        factor = COORDINATES if smooth_l1 else positive_fraction
        key = f"{key}.BBOX_REG_LOSS_WEIGHT"
        self.assign(key, select(self.cfg, key) * factor)

    def unknown(self, key, known):
        names = ", ".join(x.__name__ for x in known)
        return f"{key} = {select(self.cfg, key)}: no variant of it is known; known: {names}"

    def make_sampling_free(self, name):
        keys = (ARCHITECTURE, PROPOSAL_GENERATOR, ROI_HEADS_NAME)
        for key in keys:
            if self.cls(key) in BASELINES:
                self.assign(key, self.stock(key).__name__)
        was_guided = any(_is_sampling_free(self.cls(key)) for key in keys)
        if "SAMPLING_FREE" not in self.cfg.MODEL:
            add_sampling_free_config(self.cfg)
        settings = self.cfg.MODEL.SAMPLING_FREE
        if self.is_rcnn():
            self.convert_rcnn()
            has_prior = self.cfg.MODEL.PROPOSAL_GENERATOR.NAME == SamplingFreeRPN.__name__
        else:
            self.convert_dense()
            has_prior = True
        if self.changes and has_prior and settings.PRIOR is None:
            self.changes.append(f"{PRIOR}: None, measured before the first iteration")
        if name == "all_samples":
            self.assign(GUIDE, 1.0)
        elif was_guided and isinstance(settings.GUIDE, (int, float)):
            self.assign(GUIDE, None)

    def convert_dense(self):
        known = [SamplingFreeFCOS.__name__, *(x.__name__ for x in RCNNS)]
        if self.swap(ARCHITECTURE, DENSE_IN_YAML, known):
            self.unused("MODEL.RETINANET.FOCAL_LOSS_ALPHA", "MODEL.RETINANET.FOCAL_LOSS_GAMMA")
        node = POINTS.get(self.cfg.MODEL.META_ARCHITECTURE)
        limit = FCOS_SCORE_THRESH if node == "FCOS" else SCORE_THRESH
        node = f"MODEL.SAMPLING_FREE.{node}" if node else "MODEL.RETINANET"
        self.lower(f"{node}.SCORE_THRESH_TEST", limit)

    def convert_rcnn(self):
        model = self.cfg.MODEL
        if self.swap(PROPOSAL_GENERATOR, PROPOSALS, ["PrecomputedProposals"]):
            self.shrink_box_loss("MODEL.RPN", model.RPN.POSITIVE_FRACTION)
            self.unused("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "MODEL.RPN.POSITIVE_FRACTION")
        if model.META_ARCHITECTURE == ProposalNetwork.__name__:
            return
        for key, why in UNUSABLE_LOSSES.items():
            if model.ROI_BOX_HEAD.get(key.upper(), False):
                raise BadInput(f"MODEL.ROI_BOX_HEAD.{key.upper()} = True: {why}; set it to False")
        if model.KEYPOINT_ON and not model.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS:
            raise BadInput(
                "MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS = False: divides "
                "by the number of sampled proposals, which there are none of; set it to True"
            )
        if self.swap(ROI_HEADS_NAME, ROI_HEADS):
            self.shrink_box_loss("MODEL.ROI_BOX_HEAD", model.ROI_HEADS.POSITIVE_FRACTION)
            self.unused("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "MODEL.ROI_HEADS.POSITIVE_FRACTION")
        self.lower("MODEL.ROI_HEADS.SCORE_THRESH_TEST", SCORE_THRESH)

    def lower(self, key, limit):
        value = select(self.cfg, key)
        self.assign(key, limit if value is None else min(limit, value))

    def vary_dense(self, name):
        stock = self.stock(ARCHITECTURE)
        named = f"{ARCHITECTURE} = {self.cfg.MODEL.META_ARCHITECTURE}"
        applicable = [*METHOD] if stock is FCOS else dense_variants(stock)  # no FCOS in its YAML
        require_applies(name, applicable, named)
        new = {"focal": stock, "ohem": OHEM.get(stock), "ghm": GHM.get(stock)}[name]
        self.exchange(ARCHITECTURE, new)

    def vary_rcnn(self, name):
        has_rpn = self.cfg.MODEL.PROPOSAL_GENERATOR.NAME != "PrecomputedProposals"
        has_roi_heads = self.cfg.MODEL.META_ARCHITECTURE != ProposalNetwork.__name__
        if has_rpn and self.stock(PROPOSAL_GENERATOR) not in PROPOSALS:
            raise BadInput(self.unknown(PROPOSAL_GENERATOR, PROPOSALS))
        if has_roi_heads and self.stock(ROI_HEADS_NAME) not in ROI_HEADS:
            raise BadInput(self.unknown(ROI_HEADS_NAME, ROI_HEADS))
        roi_stock = self.stock(ROI_HEADS_NAME) if has_roi_heads else None
        keys = [PROPOSAL_GENERATOR, *[ROI_HEADS_NAME] * has_roi_heads]
        named = ", ".join(f"{key} = {select(self.cfg, key)}" for key in keys)
        require_applies(name, rcnn_variants(has_rpn, roi_stock), named)
        if has_rpn:
            hard = name == "ohem" and not has_roi_heads
            new = GHM[RPN] if name == "ghm" else OHEM[RPN] if hard else RPN
            self.exchange(PROPOSAL_GENERATOR, new)
        if has_roi_heads:
            self.exchange(ROI_HEADS_NAME, OHEM[roi_stock] if name == "ohem" else roi_stock)

    def exchange(self, key, new):
        if _is_sampling_free(self.cls(key)):
            if key in LOSS_WEIGHTS:
                self.assign(LOSS_WEIGHTS[key], select(get_cfg(), LOSS_WEIGHTS[key]))
            self.assign("MODEL.SAMPLING_FREE.TEST_SCORE_THRESH", None)  # of a prior there was
        self.assign(key, new.__name__)


def _is_sampling_free(cls):
    return cls in STOCK and cls not in BASELINES and cls is not STOCK[cls]
