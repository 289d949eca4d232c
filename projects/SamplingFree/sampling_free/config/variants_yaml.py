"""The variants of a CfgNode; see variants.py."""

from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, ProposalNetwork
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.proposal_generator import RPN

from ..method.guides import RECOMMENDED
from ..utils.errors import BadInput
from .convert_yaml import convert_cfg_node, select
from .families import (
    BASELINES,
    DENSE,
    GHM,
    OHEM,
    PROPOSALS,
    RCNNS,
    ROI_HEADS,
    STOCK,
    dense_variants,
    rcnn_variants,
)
from .variants_lazy import METHOD, require_applies

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


def vary_cfg_node(cfg, name, changes):
    """
    Args:
        cfg (CfgNode): left as it is.
        name (str): of the variant.
        changes (list[str]): gets a line for each change.

    Returns:
        CfgNode: frozen if ``cfg`` is.

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
            self.assign(GUIDE, RECOMMENDED)

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
