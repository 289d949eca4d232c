"""The conversion of a CfgNode; see convert.py."""

from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, ProposalNetwork
from detectron2.modeling.meta_arch.fcos import FCOS

from ..detectors.atss import SamplingFreeATSS
from ..detectors.fcos import SamplingFreeFCOS
from ..detectors.paa import SamplingFreePAA
from ..detectors.rpn import SamplingFreeRPN
from ..method.guides import RECOMMENDED
from ..utils.errors import BadInput
from .cfg_node import add_sampling_free_config
from .families import COORDINATES, DENSE, FCOS_SCORE_THRESH, RCNNS, ROI_HEADS, SCORE_THRESH

# The node of each detector that Detectron2 has no YAML keys for.
POINTS = {
    SamplingFreeFCOS.__name__: "FCOS",
    SamplingFreeATSS.__name__: "ATSS",
    SamplingFreePAA.__name__: "PAA",
}


def convert_cfg_node(cfg, changes):
    """
    Args:
        cfg (CfgNode): left as it is.
        changes (list[str]): gets a line for each change.

    Returns:
        CfgNode: frozen if ``cfg`` is.

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
            if cfg.MODEL.SAMPLING_FREE.GUIDE is None:
                assign("MODEL.SAMPLING_FREE.GUIDE", RECOMMENDED)
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
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
