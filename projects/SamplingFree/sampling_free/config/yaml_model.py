"""The variants of a CfgNode; see convert.py."""

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
    OHEM,
    PROPOSALS,
    RCNNS,
    ROI_HEADS,
    SCORE_THRESH,
    STOCK,
    dense_variants,
    rcnn_variants,
)
from .lazy_model import METHOD, require_applies

CLASSES = {x.__name__: x for x in STOCK}
ARCHITECTURE = "MODEL.META_ARCHITECTURE"
PROPOSAL_GENERATOR = "MODEL.PROPOSAL_GENERATOR.NAME"
ROI_HEADS_NAME = "MODEL.ROI_HEADS.NAME"
GUIDE = "MODEL.SAMPLING_FREE.GUIDE"
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
        BadInput: if the variant does not apply; names the first thing that is not known.
    """
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    nodes = _Nodes(cfg, changes)
    if name in METHOD:
        nodes.make_sampling_free(name)
    elif nodes.stock(ARCHITECTURE) in DENSE:
        nodes.vary_dense(name)
    elif _is_rcnn(cfg.MODEL.META_ARCHITECTURE):
        nodes.vary_rcnn(name)
    else:
        known = [x for x in DENSE if x is not FCOS]
        raise BadInput(nodes.unknown(ARCHITECTURE, (*known, *RCNNS)))
    if frozen:
        nodes.cfg.freeze()
    return nodes.cfg


def convert_cfg_node(cfg: CfgNode, changes: list[str]) -> CfgNode:
    """Makes a CfgNode sampling-free.

    Args:
        cfg: left as it is.
        changes: gets a line for each change.

    Returns:
        Frozen if ``cfg`` is.

    Raises:
        BadInput: names the first thing that cannot be converted.
    """
    names = {old.__name__: new.__name__ for old, new in [*DENSE.items(), *ROI_HEADS.items()]}
    names["RPN"] = SamplingFreeRPN.__name__
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    if "SAMPLING_FREE" not in cfg.MODEL:
        add_sampling_free_config(cfg)

    def assign(key, value):
        node, _, last = key.rpartition(".")
        node = select(cfg, node)
        if node[last] != value:
            changes.append(f"{key}: {node[last]} -> {value}")
            node[last] = value

    def swap(key, known):
        old = select(cfg, key)
        if old in names and old in known:
            assign(key, names[old])
            return True
        if old not in [names.get(k, k) for k in known]:
            raise BadInput(f"{key} = {old}: cannot be converted; known: {', '.join(known)}")
        return False

    def shrink_box_loss(key, positive_fraction):
        node = select(cfg, key)
        factor = COORDINATES if node.BBOX_REG_LOSS_TYPE == "smooth_l1" else positive_fraction
        assign(f"{key}.BBOX_REG_LOSS_WEIGHT", node.BBOX_REG_LOSS_WEIGHT * factor)

    def unused(node, *keys):
        for key in keys:
            changes.append(f"{node}.{key}: {select(cfg, node)[key]} -> (unused)")

    rcnns = [x.__name__ for x in RCNNS]
    arch = cfg.MODEL.META_ARCHITECTURE
    if arch in META_ARCH_REGISTRY:  # perhaps a GeneralizedRCNN of the user's own
        cls = META_ARCH_REGISTRY.get(arch)
        rcnns += [arch] if isinstance(cls, type) and issubclass(cls, GeneralizedRCNN) else []
    # Detectron2 has no FCOS in YAML.
    dense = [SamplingFreeFCOS.__name__, *(x.__name__ for x in DENSE if x is not FCOS)]
    if swap("MODEL.META_ARCHITECTURE", [*dense, *rcnns]):
        unused("MODEL.RETINANET", "FOCAL_LOSS_ALPHA", "FOCAL_LOSS_GAMMA")
    if cfg.MODEL.META_ARCHITECTURE in rcnns:
        if swap("MODEL.PROPOSAL_GENERATOR.NAME", ["RPN", "PrecomputedProposals"]):
            shrink_box_loss("MODEL.RPN", cfg.MODEL.RPN.POSITIVE_FRACTION)
            unused("MODEL.RPN", "BATCH_SIZE_PER_IMAGE", "POSITIVE_FRACTION")
        thresholds = {}
        if cfg.MODEL.META_ARCHITECTURE != ProposalNetwork.__name__:
            for key, why in {
                "USE_FED_LOSS": "samples the classes",
                "USE_SIGMOID_CE": "has no prior",
            }.items():
                if cfg.MODEL.ROI_BOX_HEAD.get(key, False):
                    raise BadInput(f"MODEL.ROI_BOX_HEAD.{key} = True: {why}; set it to False")
            keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD
            if cfg.MODEL.KEYPOINT_ON and not keypoints.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS:
                raise BadInput(
                    "MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS = False: divides "
                    "by the number of sampled proposals, which there are none of; set it to True"
                )
            if swap("MODEL.ROI_HEADS.NAME", [x.__name__ for x in ROI_HEADS]):
                shrink_box_loss("MODEL.ROI_BOX_HEAD", cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION)
                unused("MODEL.ROI_HEADS", "BATCH_SIZE_PER_IMAGE", "POSITIVE_FRACTION")
            thresholds = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": SCORE_THRESH}
    elif cfg.MODEL.META_ARCHITECTURE in POINTS:
        key = POINTS[cfg.MODEL.META_ARCHITECTURE]
        limit = FCOS_SCORE_THRESH if key == "FCOS" else SCORE_THRESH
        thresholds = {f"MODEL.SAMPLING_FREE.{key}.SCORE_THRESH_TEST": limit}
    else:
        thresholds = {"MODEL.RETINANET.SCORE_THRESH_TEST": SCORE_THRESH}
    for key, limit in thresholds.items():
        value = select(cfg, key)
        assign(key, limit if value is None else min(limit, value))
    dense = cfg.MODEL.META_ARCHITECTURE not in rcnns
    has_prior = dense or cfg.MODEL.PROPOSAL_GENERATOR.NAME == SamplingFreeRPN.__name__
    if changes and has_prior and cfg.MODEL.SAMPLING_FREE.PRIOR is None:
        changes.append("MODEL.SAMPLING_FREE.PRIOR: None, measured before the first iteration")
    if frozen:
        cfg.freeze()
    return cfg


def select(cfg, key):
    """Returns the value of a key such as "MODEL.RPN.NMS_THRESH"."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


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

    def cls(self, key):
        return CLASSES.get(select(self.cfg, key))

    def stock(self, key):
        return STOCK.get(self.cls(key))

    def unknown(self, key, known):
        names = ", ".join(x.__name__ for x in known)
        return f"{key} = {select(self.cfg, key)}: no variant of it is known; known: {names}"

    def make_sampling_free(self, name):
        keys = (ARCHITECTURE, PROPOSAL_GENERATOR, ROI_HEADS_NAME)
        for key in keys:
            if self.cls(key) in BASELINES:
                self.assign(key, self.stock(key).__name__)
        was_guided = any(_is_sampling_free(self.cls(key)) for key in keys)
        self.cfg = convert_cfg_node(self.cfg, self.changes)
        if name == "all_samples":
            self.assign(GUIDE, 1.0)
        elif was_guided and isinstance(self.cfg.MODEL.SAMPLING_FREE.GUIDE, (int, float)):
            self.assign(GUIDE, None)

    def vary_dense(self, name):
        stock = self.stock(ARCHITECTURE)
        named = f"{ARCHITECTURE} = {self.cfg.MODEL.META_ARCHITECTURE}"
        applicable = [*METHOD] if stock is FCOS else dense_variants(stock)  # no FCOS in its YAML
        require_applies(name, applicable, named)
        new = {"focal": stock, "ohem": OHEM.get(stock), "ghm": GHM.get(stock)}[name]
        self.exchange(ARCHITECTURE, new)

    def vary_rcnn(self, name):
        generator = self.cfg.MODEL.PROPOSAL_GENERATOR.NAME
        has_rpn = generator != "PrecomputedProposals"
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


def _is_rcnn(name):
    """One of Detectron2's, or a GeneralizedRCNN of the user's own."""
    cls = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return cls in RCNNS or (isinstance(cls, type) and issubclass(cls, GeneralizedRCNN))
