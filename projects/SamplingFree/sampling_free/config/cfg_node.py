"""Detectron2's YAML configs (CfgNode): the keys of this project, and the same config as LazyConfig.

A YAML file is read by Detectron2, kept whole under the key ``cfg``, and put behind the nodes of a
LazyConfig that refer to it. So one trainer, with one set of hooks and flags, runs both kinds.
"""

import logging
import re
from collections.abc import Callable

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.solver import build_lr_scheduler
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, OmegaConf

from ..checkpoint.pickles import NotPlain, require_plain
from ..data.loader import build_replayable_train_loader
from ..detectors.thresholds import PriorThreshold
from ..utils.errors import BadInput
from . import families  # noqa: F401  the classes register themselves with Detectron2
from .zoo import model_zoo

logger = logging.getLogger(__name__)

EVALUATORS = {
    "coco": [COCOEvaluator],
    "lvis": [LVISEvaluator],
    "pascal_voc": [PascalVOCDetectionEvaluator],
    "coco_panoptic_seg": [COCOEvaluator, SemSegEvaluator, COCOPanopticEvaluator],
}


def add_sampling_free_config(cfg: CfgNode) -> None:
    """Adds the node ``MODEL.SAMPLING_FREE`` to a CfgNode, in place."""
    cfg.MODEL.SAMPLING_FREE = node = CfgNode()
    # Of the dense detector or the RPN. None: measured on the training set before the first
    # iteration; "per_class": one for each class, measured; a number in (0, 1) wins.
    node.PRIOR = None
    # None: the recommended one; "iteration", the paper's r = L_loc / L_cls; "gradient", "frozen",
    # or a number as a constant instead: see method/guides.py.
    node.GUIDE = None
    # Dense detectors. None: the number in the detector's own key; "prior" or "per_class": from the
    # measured prior.
    node.TEST_SCORE_THRESH = None
    # RetinaNet; 0.25 is the mean over the four coordinates. The RPN and the RoI head have
    # Detectron2's BBOX_REG_LOSS_WEIGHT for it.
    node.BOX_REG_LOSS_WEIGHT = 1.0
    # RoI head: start score of each class in the softmax; None leaves its bias alone.
    node.SOFTMAX_PRIOR = None
    # RoI head: foreground proposals of an image that the mask head sees at most; None: all.
    node.MAX_MASK_POSITIVES = None

    fcos = node.FCOS = CfgNode()  # the rest is in MODEL.RETINANET
    fcos.NORM = "GN"
    fcos.CENTER_SAMPLING_RADIUS = 1.5  # in strides
    fcos.SCORE_THRESH_TEST = 0.0316  # of sqrt(class score * centerness)
    fcos.NMS_THRESH_TEST = 0.6

    atss = node.ATSS = CfgNode()  # the rest is in MODEL.RETINANET
    atss.NORM = "GN"
    atss.ANCHOR_SIZE = 8.0  # in strides
    atss.TOPK = 9  # candidates of an object in each level
    atss.BOX_LOSS_WEIGHT = 2.0
    atss.SCORE_THRESH_TEST = None  # of the class score; None: the class' own
    atss.NMS_THRESH_TEST = 0.6

    paa = node.PAA = atss.clone()
    paa.IOU_THRESHOLD = 0.1  # of the candidates
    paa.BOX_LOSS_WEIGHT = 1.3
    paa.IOU_LOSS_WEIGHT = 0.5
    paa.SCORE_VOTING = True


def is_cfg_node_file(path: str) -> bool:
    """Whether a file is a YAML config of Detectron2, and not a LazyConfig that a run has saved."""
    if not path.endswith((".yaml", ".yml")):
        return False
    with PathManager.open(path, "rb") as f:
        keys = set(re.findall(rb"^(\w+)\s*:", f.read(), re.MULTILINE))
    own = {b"_BASE_", *(key.encode() for key in get_cfg())}
    return bool(keys & own) and not keys & {b"model", b"train", b"dataloader"}


def read_cfg_node(path: str) -> CfgNode:
    """Reads a YAML config with the keys of Detectron2 and of this project.

    Raises:
        BadInput: for an unknown key or a value of the wrong type; names the file.
    """
    cfg = get_cfg()
    add_sampling_free_config(cfg)
    try:
        cfg.merge_from_file(path)
    except Exception as e:  # of the YAML parser, of yacs and of Detectron2
        raise BadInput(f"{path}: {type(e).__name__}: {e}") from e
    return cfg


def lazy_from_cfg_node(cfg: CfgNode) -> DictConfig:
    """Makes the LazyConfig that trains what a CfgNode describes.

    Args:
        cfg: kept whole as ``cfg``; the other nodes refer to it.

    Returns:
        With the nodes of a LazyConfig.
    """
    workers, images = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
    if workers < 0 or workers and images % workers:
        raise BadInput(
            f"SOLVER.REFERENCE_WORLD_SIZE {workers}: give the number of processes that share "
            f"SOLVER.IMS_PER_BATCH = {images}, or 0 to scale nothing"
        )
    cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
    for key, is_on in {
        "TEST.PRECISE_BN.ENABLED": cfg.TEST.PRECISE_BN.ENABLED,
        "TEST.AUG.ENABLED": cfg.TEST.AUG.ENABLED,
    }.items():
        if is_on:
            logger.warning(f"{key}: ignored by this trainer")
    train = model_zoo.get_config("common/train.py").train
    train.update(
        output_dir="${cfg.OUTPUT_DIR}",
        init_checkpoint="${cfg.MODEL.WEIGHTS}",
        max_iter="${cfg.SOLVER.MAX_ITER}",
        amp=dict(enabled="${cfg.SOLVER.AMP.ENABLED}"),
        checkpointer=dict(period="${cfg.SOLVER.CHECKPOINT_PERIOD}", max_to_keep=None),
        eval_period="${cfg.TEST.EVAL_PERIOD}",
        device="${cfg.MODEL.DEVICE}",
        seed="${cfg.SEED}",
        cudnn_benchmark="${cfg.CUDNN_BENCHMARK}",
        float32_precision=cfg.get("FLOAT32_PRECISION", ""),  # newer than v0.6
        expected_results="${cfg.TEST.EXPECTED_RESULTS}",
        clip_gradients={
            key: f"${{cfg.SOLVER.CLIP_GRADIENTS.{key.upper()}}}"
            for key in ("enabled", "clip_type", "clip_value", "norm_type")
        },
    )
    optimizer = L(torch.optim.SGD)(
        params=L(get_default_optimizer_params)(
            base_lr="${..lr}",
            weight_decay_norm="${cfg.SOLVER.WEIGHT_DECAY_NORM}",
            bias_lr_factor="${cfg.SOLVER.BIAS_LR_FACTOR}",
            weight_decay_bias="${cfg.SOLVER.WEIGHT_DECAY_BIAS}",
        ),
        lr="${cfg.SOLVER.BASE_LR}",
        momentum="${cfg.SOLVER.MOMENTUM}",
        nesterov="${cfg.SOLVER.NESTEROV}",
        weight_decay="${cfg.SOLVER.WEIGHT_DECAY}",
    )
    dataloader = dict(
        train=L(train_loader)(
            cfg="${cfg}",
            dataset=L(dataset_dicts)(cfg="${cfg}", names="${cfg.DATASETS.TRAIN}", is_train=True),
            mapper=L(dataset_mapper)(cfg="${cfg}", is_train=True),
            total_batch_size="${cfg.SOLVER.IMS_PER_BATCH}",
            aspect_ratio_grouping="${cfg.DATALOADER.ASPECT_RATIO_GROUPING}",
            num_workers="${cfg.DATALOADER.NUM_WORKERS}",
            seed="${train.seed}",
            unreadable="stop",
        )
    )
    if names := list(cfg.DATASETS.TEST):
        dataloader["test"] = L(build_detection_test_loader)(
            dataset=L(dataset_dicts)(
                cfg="${cfg}", names=names if len(names) > 1 else names[0], is_train=False
            ),
            mapper=L(dataset_mapper)(cfg="${cfg}", is_train=False),
            num_workers="${cfg.DATALOADER.NUM_WORKERS}",
        )
        # One or more of each set, as they may be of different kinds.
        nodes = [node for name in names for node in _evaluators(cfg, name)]
        dataloader["evaluator"] = nodes if len(nodes) > 1 else nodes[0]
    return OmegaConf.create(
        dict(
            cfg=plain(cfg),
            model=L(meta_architecture)(cfg="${cfg}"),
            optimizer=optimizer,
            lr_multiplier=L(learning_rate_schedule)(cfg="${cfg}"),
            dataloader=dataloader,
            train=train,
        ),
        flags={"allow_objects": True},
    )


def cfg_node(cfg: DictConfig) -> CfgNode:
    """Returns the CfgNode again.

    Args:
        cfg: the key ``cfg`` of :func:`lazy_from_cfg_node`.
    """
    node = get_cfg()
    add_sampling_free_config(node)
    node.set_new_allowed(True)
    node.merge_from_other_cfg(CfgNode(OmegaConf.to_container(cfg, resolve=True)))
    return node


def meta_architecture(cfg: DictConfig) -> torch.nn.Module:
    """Builds the model; the trainer moves it to its device."""
    node = cfg_node(cfg)
    try:
        model = META_ARCH_REGISTRY.get(node.MODEL.META_ARCHITECTURE)(node)
    except KeyError as e:
        if "registry" not in str(e):
            raise
        raise BadInput(f"the YAML config names what is not registered: {e}") from None
    mode = node.MODEL.SAMPLING_FREE.TEST_SCORE_THRESH
    if mode is not None and not isinstance(model, PriorThreshold):
        raise BadInput(
            f"MODEL.SAMPLING_FREE.TEST_SCORE_THRESH = {mode}: {type(model).__name__} has no "
            "prior to take it from; leave it at None"
        )
    return model


def learning_rate_schedule(cfg: DictConfig) -> Callable[[float], float]:
    """Builds the multiplier of the learning rate, as Detectron2 makes it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        return build_lr_scheduler(cfg_node(cfg), optimizer)._multiplier
    except (ValueError, AssertionError) as e:
        node = cfg.SOLVER
        raise BadInput(
            f"SOLVER: no schedule from LR_SCHEDULER_NAME = {node.LR_SCHEDULER_NAME}, STEPS = "
            f"{node.STEPS} and MAX_ITER = {node.MAX_ITER}: {e}"
        ) from None


def dataset_mapper(cfg: DictConfig, is_train: bool) -> DatasetMapper:
    """Makes Detectron2's mapper of a YAML config."""
    return DatasetMapper(cfg_node(cfg), is_train=is_train)


def dataset_dicts(cfg: DictConfig, names: str | list[str], is_train: bool) -> list[dict]:
    """Loads the records of data sets, as Detectron2's loaders get them from a CfgNode."""
    node = cfg_node(cfg)
    sets = node.DATASETS
    if is_train:
        files = sets.PROPOSAL_FILES_TRAIN
    else:
        of_name = dict(zip(sets.TEST, sets.PROPOSAL_FILES_TEST))
        files = [of_name[n] for n in ([names] if isinstance(names, str) else names) if n in of_name]
    for file in files if node.MODEL.LOAD_PROPOSALS else ():
        _require_plain(file)
    min_keypoints = node.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    return get_detection_dataset_dicts(
        names,
        filter_empty=is_train and node.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=min_keypoints if is_train and node.MODEL.KEYPOINT_ON else 0,
        proposal_files=files if node.MODEL.LOAD_PROPOSALS else None,
    )


def _require_plain(path):
    """Detectron2 unpickles proposals, and trusts them."""
    try:
        with PathManager.open(path, "rb") as f:
            require_plain(f)
    except NotPlain as e:
        raise BadInput(
            f"DATASETS.PROPOSAL_FILES: {path}: refused, as it could run code ({e}); write it with "
            "arrays, lists and numbers, bbox_mode as a number"
        ) from None


def train_loader(dataset: list[dict], *, cfg: DictConfig, seed: int, **kwargs):
    """Builds the replayable loader with the sampler that ``DATALOADER.SAMPLER_TRAIN`` names."""
    node, sampler = cfg.DATALOADER, None
    if node.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        newer = {"sqrt": node.REPEAT_SQRT} if "REPEAT_SQRT" in node else {}
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, node.REPEAT_THRESHOLD, **newer
        )
        sampler = RepeatFactorTrainingSampler(factors, seed=seed if seed >= 0 else None)
    elif node.SAMPLER_TRAIN != "TrainingSampler":
        raise BadInput(
            f"DATALOADER.SAMPLER_TRAIN = {node.SAMPLER_TRAIN}: known are TrainingSampler and "
            "RepeatFactorTrainingSampler"
        )
    return build_replayable_train_loader(dataset, sampler=sampler, seed=seed, **kwargs)


def _evaluators(cfg, name):
    kind = MetadataCatalog.get(name).get("evaluator_type", "coco")
    if kind not in EVALUATORS:
        raise BadInput(f"{name}: no evaluator for {kind}; known: {[*EVALUATORS]}")
    if len(cfg.DATASETS.TEST) == 1:
        name = "${dataloader.test.dataset.names}"
    nodes = [L(evaluator)(dataset_name=name) for evaluator in EVALUATORS[kind]]
    if nodes[0]._target_ is COCOEvaluator and cfg.TEST.KEYPOINT_OKS_SIGMAS:
        nodes[0].kpt_oks_sigmas = list(cfg.TEST.KEYPOINT_OKS_SIGMAS)
    return nodes


def plain(cfg: object) -> object:
    """Returns a CfgNode as nested dicts and lists."""
    if isinstance(cfg, dict):
        return {key: plain(value) for key, value in cfg.items()}
    return [plain(x) for x in cfg] if isinstance(cfg, (list, tuple)) else cfg
