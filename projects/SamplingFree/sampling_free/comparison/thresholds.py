"""The test score thresholds of a config: which keys they are, and what they usually are.

A low threshold is worth some AP, so all variants of a comparison are tested at that of the
sampling-free one, and the baselines at their usual one too, in a row of its own.
"""

from detectron2.modeling.meta_arch.fcos import FCOS
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..config.yaml_model import POINTS
from ..detectors.atss import ATSS
from ..utils.errors import BadInput
from ..utils.lazy import target_of

# Detectron2's RetinaNet, MODEL.ROI_HEADS.SCORE_THRESH_TEST, and ATSS and PAA as published.
USUAL = 0.05
USUAL_FCOS = 0.2  # Detectron2's FCOS; of sqrt(class score * centerness)


def score_thresholds(cfg: DictConfig):
    """The test score thresholds by the key with which an override sets them.

    Args:
        cfg: of :func:`~sampling_free.config.load.load_config`.

    Returns:
        dict[str, float or str]: one entry; of a cascade one for each stage; none for a proposal
        network.
    """
    if "cfg" in cfg.model:  # of a YAML config
        key = _yaml_key(cfg.model.cfg.MODEL.META_ARCHITECTURE)
        return {key: OmegaConf.select(cfg.model.cfg, key)} if key else {}
    heads = cfg.model.get("roi_heads", None)
    if heads is None:
        is_dense = "proposal_generator" not in cfg.model
        return {"model.test_score_thresh": _value(cfg.model)} if is_dense else {}
    name = "box_predictors" if "box_predictors" in heads else "box_predictor"
    nodes, where = heads[name], f"model.roi_heads.{name}"
    if not isinstance(nodes, ListConfig):
        return {f"{where}.test_score_thresh": _value(nodes)}
    return {f"{where}.{i}.test_score_thresh": _value(node) for i, node in enumerate(nodes)}


def shared_settings(cfg: DictConfig) -> tuple[str, ...]:
    """The overrides that give another variant the test thresholds of this config.

    Args:
        cfg: the sampling-free one.

    Returns:
        "key=value"

    Raises:
        BadInput: a threshold follows from the prior, which the baselines do not have.
    """
    found = score_thresholds(cfg)
    for key, value in found.items():
        if not isinstance(value, (int, float)):
            raise BadInput(
                f"{key}={value}: all variants are tested at one threshold, and the baselines have "
                f"no prior; give a number, such as {key}=0.001"
            )
    return tuple(f"{key}={value}" for key, value in found.items())


def usual_settings(cfg: DictConfig) -> tuple[str, ...]:
    """The overrides for the threshold at which a baseline is usually tested.

    Args:
        cfg: the baseline's.

    Returns:
        "key=value"; empty where the config has it already.
    """
    found = score_thresholds(cfg)
    target = None if "cfg" in cfg.model else target_of(cfg.model)
    is_fcos = isinstance(target, type) and issubclass(target, FCOS) and not issubclass(target, ATSS)
    usual = USUAL_FCOS if is_fcos else USUAL
    if all(value == usual for value in found.values()):
        return ()
    return tuple(f"{key}={usual}" for key in found)


def _value(node):
    return node.get("test_score_thresh", 0.0)  # of the box predictor, which may lack it


def _yaml_key(architecture):
    if architecture in POINTS:
        return f"MODEL.SAMPLING_FREE.{POINTS[architecture]}.SCORE_THRESH_TEST"
    if "RetinaNet" in architecture:
        return "MODEL.RETINANET.SCORE_THRESH_TEST"
    return None if architecture == "ProposalNetwork" else "MODEL.ROI_HEADS.SCORE_THRESH_TEST"
