"""YAML configs of Detectron2: the keys of this project, and the LazyConfig that trains the same."""

import copy
import functools
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.build import _test_loader_from_config, _train_loader_from_config
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, FastRCNNOutputLayers
from detectron2.solver import LRMultiplier, build_lr_scheduler, build_optimizer
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from tiny_run import (
    load,
    log_lines,
    metrics,
    same,
    train_net,
    write_config,
)

import sampling_free
from sampling_free import BadInput, PriorInit, add_sampling_free_config, convert, engine
from sampling_free.config import load_config
from sampling_free.data import register_synthetic
from sampling_free.datasets import dataset_names, load_dataset
from sampling_free.engine import LazyTrainer
from sampling_free.yaml_config import (
    cfg_node,
    is_cfg_node_file,
    lazy_from_cfg_node,
    read_cfg_node,
)

ROOT = Path(model_zoo.get_config_file("Base-RCNN-FPN.yaml")).parent
FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
KEYPOINTS = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml"
NUM_CLASSES = 5

TINY = """
_BASE_: "{base}"
MODEL:
  WEIGHTS: ""
  DEVICE: cpu
  MASK_ON: False
  RESNETS: {{STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 32, WIDTH_PER_GROUP: 8}}
  FPN: {{OUT_CHANNELS: 32}}
  RPN: {{PRE_NMS_TOPK_TRAIN: 40, POST_NMS_TOPK_TRAIN: 40, POST_NMS_TOPK_TEST: 20}}
  ROI_BOX_HEAD: {{FC_DIM: 16}}
  ROI_HEADS: {{NUM_CLASSES: 5}}
  RETINANET: {{NUM_CLASSES: 5}}
INPUT:
  MIN_SIZE_TRAIN: (48, 64)
  MIN_SIZE_TEST: 64
DATASETS:
  TRAIN: ("{train}",)
  TEST: ("{val}",)
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER:
  IMS_PER_BATCH: 2
  BASE_LR: 1.0e-4
  MAX_ITER: 4
  STEPS: (3,)
  WARMUP_ITERS: 2
  CHECKPOINT_PERIOD: 2
SEED: 3
OUTPUT_DIR: "{output}"
"""
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"
C4 = "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two registered synthetic sets: names and annotation files by split."""
    root = str(tmp_path_factory.mktemp("yaml_sets"))
    made = SimpleNamespace(names={}, files={}, images={})
    for split in ("train", "val"):
        name = f"yaml_config_{split}"
        register_synthetic(
            name,
            split,
            root=root,
            train_images=12,
            val_images=6,
            image_size=(64, 64),
            crowd=0.0,
            empty=0.0,
        )
        made.names[split] = name
        made.files[split] = MetadataCatalog.get(name).json_file
        made.images[split] = MetadataCatalog.get(name).image_root
    yield made
    for name in made.names.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def tiny(tmp_path, sets):
    """Writes a small YAML config of a zoo file; returns its path."""

    def write(base=FASTER, extra="", name="config.yaml"):
        path = tmp_path / name
        text = TINY.format(
            base=ROOT / base,
            train=sets.names["train"],
            val=sets.names["val"],
            output=tmp_path / "out",
        )
        path.write_text(text + extra)
        return str(path)

    return write


def zoo(name=FASTER, **changes):
    """The CfgNode of a zoo file with keys changed; "__" stands for a dot."""
    cfg = read_cfg_node(model_zoo.get_config_file(name))
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def message(*arguments):
    with pytest.raises(BadInput) as e:
        load_config(*arguments)
    assert len(str(e.value).splitlines()) == 1
    return str(e.value)


# The keys of this project ----------------------------------------------------------------------


def test_the_keys_and_their_defaults():
    cfg = get_cfg()
    before = cfg.clone()
    assert add_sampling_free_config(cfg) is None
    assert cfg.MODEL.SAMPLING_FREE == {
        "PRIOR": None,
        "GUIDE": None,
        "BOX_REG_LOSS_WEIGHT": 1.0,
        "SOFTMAX_PRIOR": None,
        "MAX_MASK_POSITIVES": None,
        "FCOS": {
            "NORM": "GN",
            "CENTER_SAMPLING_RADIUS": 1.5,
            "SCORE_THRESH_TEST": 0.0316,
            "NMS_THRESH_TEST": 0.6,
        },
    }
    del cfg.MODEL["SAMPLING_FREE"]
    assert cfg == before
    assert sampling_free.add_sampling_free_config is add_sampling_free_config


@pytest.mark.parametrize(
    "text, value",
    [
        ("0.01", 0.01),
        ("1e-3", 0.001),  # a string to YAML
        ("auto", "auto"),
        ('"auto"', "auto"),
        ('"0.02"', 0.02),
        ("null", None),
    ],
)
@pytest.mark.parametrize("by", ["file", "command line"])
def test_a_prior_is_a_number_or_auto(tmp_path, text, value, by):
    path = tmp_path / "a.yaml"
    line = f"  SAMPLING_FREE: {{PRIOR: {text}}}\n" if by == "file" else ""
    path.write_text(f'_BASE_: "{ROOT / FASTER}"\nMODEL:\n  MASK_ON: False\n{line}')
    text = {"null": "None", '"0.02"': "0.02"}.get(text, text)
    overrides = [] if by == "file" else ["MODEL.SAMPLING_FREE.PRIOR", text]
    cfg = load_config(str(path), overrides, True).cfg
    assert cfg.MODEL.SAMPLING_FREE.PRIOR == value
    assert type(cfg.MODEL.SAMPLING_FREE.PRIOR) is type(value)


@pytest.mark.parametrize("text, value", [("iteration", "iteration"), ("1", 1), ("0.5", 0.5)])
@pytest.mark.parametrize("by", ["file", "command line"])
def test_a_guide_is_a_number_or_iteration(tmp_path, text, value, by):
    path = tmp_path / "a.yaml"
    line = f"  SAMPLING_FREE: {{GUIDE: {text}}}\n" if by == "file" else ""
    path.write_text(f'_BASE_: "{ROOT / RETINANET}"\nMODEL:\n  MASK_ON: False\n{line}')
    overrides = [] if by == "file" else ["MODEL.SAMPLING_FREE.GUIDE", text]
    assert load_config(str(path), overrides, True).cfg.MODEL.SAMPLING_FREE.GUIDE == value


def small(cfg):
    """A CfgNode with a narrow model, to be built on the CPU."""
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL
    node.DEVICE, node.WEIGHTS = "cpu", ""
    node.RESNETS.STEM_OUT_CHANNELS = node.RESNETS.WIDTH_PER_GROUP = 8
    node.RESNETS.RES2_OUT_CHANNELS = node.FPN.OUT_CHANNELS = 32
    node.ROI_BOX_HEAD.FC_DIM = node.ROI_MASK_HEAD.CONV_DIM = 16
    return cfg


# What a user writes by hand in place of convert().
BY_HAND = {
    "SamplingFreeRetinaNet": (RETINANET, {"MODEL__META_ARCHITECTURE": "SamplingFreeRetinaNet"}),
    "SamplingFreeFCOS": ("Base-RetinaNet.yaml", {"MODEL__META_ARCHITECTURE": "SamplingFreeFCOS"}),
    "SamplingFreeRPN": (
        "COCO-Detection/rpn_R_50_FPN_1x.yaml",
        {"MODEL__PROPOSAL_GENERATOR__NAME": "SamplingFreeRPN"},
    ),
    "SamplingFreeStandardROIHeads": (
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
        {"MODEL__ROI_HEADS__NAME": "SamplingFreeStandardROIHeads"},
    ),
    "SamplingFreeCascadeROIHeads": (
        "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
        {"MODEL__ROI_HEADS__NAME": "SamplingFreeCascadeROIHeads"},
    ),
    "SamplingFreeRes5ROIHeads": (
        "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
        {"MODEL__ROI_HEADS__NAME": "SamplingFreeRes5ROIHeads"},
    ),
}


def registries():
    return {
        **dict(META_ARCH_REGISTRY),
        **dict(PROPOSAL_GENERATOR_REGISTRY),
        **dict(ROI_HEADS_REGISTRY),
    }


@pytest.mark.parametrize("name", BY_HAND)
def test_each_class_is_registered_and_built_by_its_name(name):
    cls = getattr(sampling_free, name)
    assert registries()[name] is cls
    base, changes = BY_HAND[name]
    model = build_model(small(zoo(base, **changes)))
    assert [type(m) for m in model.modules() if isinstance(m, cls)] == [cls]


def of_class(model, cls):
    return [m for m in model.modules() if isinstance(m, cls)]


@functools.lru_cache(None)
def built_with_settings(name):
    base, changes = BY_HAND[name]
    cfg = small(zoo(base, **changes))
    cfg.MODEL.SAMPLING_FREE.update(
        PRIOR=0.02, GUIDE=0.5, BOX_REG_LOSS_WEIGHT=0.25, SOFTMAX_PRIOR=0.003
    )
    if "Res5" not in name:
        cfg.MODEL.SAMPLING_FREE.MAX_MASK_POSITIVES = 7
    cfg.MODEL.SAMPLING_FREE.FCOS.update(
        CENTER_SAMPLING_RADIUS=2.5, SCORE_THRESH_TEST=0.07, NMS_THRESH_TEST=0.55, NORM=""
    )
    cfg.MODEL.RETINANET.update(TOPK_CANDIDATES_TEST=77, NUM_CLASSES=6)
    cfg.TEST.DETECTIONS_PER_IMAGE = 33
    return build_model(cfg)


@pytest.mark.parametrize("name", ["SamplingFreeRetinaNet", "SamplingFreeFCOS", "SamplingFreeRPN"])
def test_prior_and_guide_reach_the_dense_heads(name):
    (head,) = of_class(built_with_settings(name), getattr(sampling_free, name))
    assert head.prior == 0.02 and head.guide == 0.5
    bias = -np.log((1 - 0.02) / 0.02)
    assert head.classifier_bias.tolist() == pytest.approx([bias] * len(head.classifier_bias))


@pytest.mark.parametrize("name", [n for n in BY_HAND if n.endswith("ROIHeads")])
def test_guide_and_softmax_prior_reach_every_box_predictor(name):
    model = built_with_settings(name)
    predictors = of_class(model, sampling_free.SamplingFreeFastRCNNOutputLayers)
    assert len(predictors) == (3 if "Cascade" in name else 1)
    for predictor in predictors:
        assert predictor.guide == 0.5 and predictor.softmax_prior == 0.003
        scores = predictor.cls_score.bias.softmax(0)
        assert scores[:-1].tolist() == pytest.approx([0.003] * 80)
    if "Res5" not in name:
        assert model.roi_heads.max_mask_positives == 7


@pytest.mark.parametrize("name", [n for n in BY_HAND if n.endswith("ROIHeads")])
def test_the_box_predictors_have_the_transforms_of_detectron2s(name):
    base, _ = BY_HAND[name]
    stock = build_model(small(zoo(base)))
    found, expected = (
        [(m.box2box_transform.weights, m.bbox_pred.weight.shape) for m in of_class(model, cls)]
        for model, cls in (
            (built_with_settings(name), sampling_free.SamplingFreeFastRCNNOutputLayers),
            (stock, FastRCNNOutputLayers),
        )
    )
    assert found == expected and len(set(found)) == len(found)


def test_a_limit_of_masks_that_c4_does_not_know_is_refused():
    base, changes = BY_HAND["SamplingFreeRes5ROIHeads"]
    cfg = small(zoo(base, MODEL__SAMPLING_FREE__MAX_MASK_POSITIVES=7, **changes))
    with pytest.raises(BadInput, match="MAX_MASK_POSITIVES.*Res5ROIHeads"):
        build_model(cfg)


def test_an_absent_prior_is_to_be_measured_and_an_absent_guide_is_the_papers():
    base, changes = BY_HAND["SamplingFreeRetinaNet"]
    model = build_model(small(zoo(base, **changes)))
    assert model.prior == "auto" and model.guide == "iteration"
    assert model.box_reg_loss_weight == 1.0
    assert built_with_settings("SamplingFreeRetinaNet").box_reg_loss_weight == 0.25


def test_fcos_from_the_yaml_of_retinanet():
    model = built_with_settings("SamplingFreeFCOS")
    assert model.center_sampling_radius == 2.5 and model.num_classes == 6
    assert model.test_score_thresh == 0.07 and model.test_nms_thresh == 0.55
    assert model.test_topk_candidates == 77 and model.max_detections_per_image == 33
    assert model.head_in_features == ["p3", "p4", "p5", "p6", "p7"]
    assert not any(isinstance(m, torch.nn.GroupNorm) for m in model.head.modules())
    # With the defaults it has the head of Detectron2's LazyConfig.
    cfg = zoo("Base-RetinaNet.yaml", MODEL__META_ARCHITECTURE="SamplingFreeFCOS")
    cfg.MODEL.DEVICE = "meta"
    lazy = model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py").model
    with torch.device("meta"):
        ours, stock = build_model(cfg), instantiate(lazy)
    shapes = [{k: v.shape for k, v in m.head.state_dict().items()} for m in (ours, stock)]
    assert shapes[0] == shapes[1]
    assert ours.test_score_thresh == 0.0316
    for name in ("test_nms_thresh", "center_sampling_radius", "num_classes",
                 "test_topk_candidates", "max_detections_per_image"):  # fmt: skip
        assert getattr(ours, name) == getattr(stock, name), name
    assert [m.num_groups for m in of_class(ours.head, torch.nn.GroupNorm)] == [32] * 8


@pytest.mark.parametrize("prior", ["2", "many", "[1]"])
def test_a_prior_that_is_none_is_refused_when_the_model_is_built(prior):
    cfg = small(zoo(RETINANET, MODEL__META_ARCHITECTURE="SamplingFreeRetinaNet"))
    cfg.merge_from_list(["MODEL.SAMPLING_FREE.PRIOR", prior])
    with pytest.raises(BadInput, match="prior"):
        build_model(cfg)


# Which files are YAML configs of Detectron2 ----------------------------------------------------


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.yaml")), ids=lambda p: p.stem)
def test_the_files_of_the_zoo_are_known(path):
    assert is_cfg_node_file(str(path))


@pytest.mark.parametrize(
    "name, text, known",
    [
        ("a.yaml", "_BASE_: b.yaml\n", True),
        ("a.yml", "# a comment\nSOLVER:\n  MAX_ITER: 3\n", True),
        ("a.yaml", "OUTPUT_DIR : somewhere\n", True),
        ("a.yaml", "model:\n  MODEL: 3\n", False),
        ("a.yaml", "train:\n  max_iter: 3\n", False),
        ("a.yaml", "", False),
        ("a.py", "MODEL: 3\n", False),
        ("a.py", "_BASE_: 3\n", False),
    ],
)
def test_what_tells_a_yaml_config_of_detectron2(tmp_path, name, text, known):
    (tmp_path / name).write_text(text)
    assert is_cfg_node_file(str(tmp_path / name)) == known


def test_a_lazy_config_that_a_run_has_saved_is_none(tmp_path):
    lazy = load_config(write_config(tmp_path))
    LazyConfig.save(lazy, str(tmp_path / "lazy.yaml"))
    assert not is_cfg_node_file(str(tmp_path / "lazy.yaml"))
    LazyConfig.save(load_config(FASTER, [], True), str(tmp_path / "node.yaml"))
    assert not is_cfg_node_file(str(tmp_path / "node.yaml"))


def test_a_saved_lazy_config_with_a_name_in_capitals_is_none(tmp_path):
    lines = "\nfrom detectron2.model_zoo import get_config\n"
    lines += "SGD = get_config('common/optim.py').SGD\noptimizer = SGD\n"
    lazy = load_config(write_config(tmp_path, lines))
    LazyConfig.save(lazy, str(tmp_path / "lazy.yaml"))
    assert not is_cfg_node_file(str(tmp_path / "lazy.yaml"))
    assert load_config(str(tmp_path / "lazy.yaml")).train == lazy.train


def test_a_key_that_is_unknown_to_detectron2_is_named_with_the_file(tmp_path):
    texts = "SOLVER: {MAX_ITR: 3}", "SOLVER: {MAX_ITER: three}", "SOLVER: [", "_BASE_: no.yaml"
    for text in texts:
        path = tmp_path / "a.yaml"
        path.write_text(text + "\n")
        assert message(str(path)).startswith(f"{path}: "), text


# The same as a LazyConfig ----------------------------------------------------------------------

SOLVERS = [
    {},
    {"SOLVER__BIAS_LR_FACTOR": 2.0, "SOLVER__WEIGHT_DECAY_BIAS": 0.0},
    {"SOLVER__WEIGHT_DECAY_NORM": 0.5, "SOLVER__WEIGHT_DECAY": 3e-3, "SOLVER__BASE_LR": 0.3},
    {"SOLVER__MOMENTUM": 0.5, "SOLVER__NESTEROV": True, "SOLVER__WEIGHT_DECAY_BIAS": 1e-5},
]


class Toy(torch.nn.Sequential):
    """A layer with a bias, a norm, and a parameter that is not trained."""

    def __init__(self):
        super().__init__(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
        self[2].weight.requires_grad = False


@pytest.mark.parametrize("changes", SOLVERS, ids=range(len(SOLVERS)))
def test_the_optimizer_is_that_of_detectron2(changes):
    cfg = zoo(**changes)
    model = Toy()
    expected = build_optimizer(cfg, model)
    lazy = lazy_from_cfg_node(cfg)
    found = LazyTrainer.build_optimizer(lazy, model)
    assert isinstance(found, torch.optim.SGD)
    assert len(found.param_groups) == len(expected.param_groups)
    for a, b in zip(found.param_groups, expected.param_groups):
        assert [id(p) for p in a["params"]] == [id(p) for p in b["params"]]
        drop = ("params", "foreach")  # the latter is speed
        assert {k: v for k, v in a.items() if k not in drop} == {
            k: v for k, v in b.items() if k not in drop
        }


@pytest.mark.parametrize(
    "clip",
    [{"ENABLED": False}, {"CLIP_TYPE": "value", "CLIP_VALUE": 0.01},
     {"CLIP_TYPE": "norm", "CLIP_VALUE": 0.5, "NORM_TYPE": 1.0},
     {"CLIP_TYPE": "norm", "CLIP_VALUE": 0.1, "NORM_TYPE": float("inf")}],
    ids=range(4),
)  # fmt: skip
def test_gradients_are_clipped_as_detectron2_does_it(clip):
    cfg = zoo()
    cfg.SOLVER.CLIP_GRADIENTS.update({"ENABLED": True, **clip})
    lazy = lazy_from_cfg_node(cfg)
    results = []
    for build in (build_optimizer, lambda _, m: LazyTrainer.build_optimizer(lazy, m)):
        torch.manual_seed(0)
        model = Toy()
        optimizer = build(cfg, model)
        features = model[1](model[0](torch.randn(2, 3, 4, 4)))
        model[2](features.mean((2, 3)) + features.amax((2, 3))).square().sum().mul(50).backward()
        optimizer.step()
        results.append(model.state_dict())
    assert same(*results)


SCHEDULES = [
    {},
    {"MAX_ITER": 97, "STEPS": (30, 60, 90), "GAMMA": 0.3, "WARMUP_ITERS": 11},
    {"MAX_ITER": 50, "STEPS": (), "WARMUP_ITERS": 3},
    {"MAX_ITER": 40, "STEPS": (20, 60), "WARMUP_ITERS": 80},
    {"MAX_ITER": 60, "LR_SCHEDULER_NAME": "WarmupCosineLR", "WARMUP_METHOD": "constant",
     "WARMUP_ITERS": 7, "WARMUP_FACTOR": 0.2},
    {"MAX_ITER": 60, "LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 0.001},
    {"MAX_ITER": 60, "LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR", "NUM_DECAYS": 4,
     "STEPS": (), "RESCALE_INTERVAL": True, "WARMUP_ITERS": 9},
]  # fmt: skip


def rates(scheduler, optimizer, num):
    found = []
    for _ in range(num - 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*found, optimizer.param_groups[0]["lr"]]


@pytest.mark.parametrize("solver", SCHEDULES, ids=range(len(SCHEDULES)))
def test_the_learning_rate_is_that_of_detectron2_in_every_iteration(solver):
    cfg = zoo()
    if not set(solver) <= set(cfg.SOLVER):
        pytest.skip("of newer versions")
    cfg.SOLVER.update(solver)
    num = min(cfg.SOLVER.MAX_ITER, 2000)
    expected = build_optimizer(cfg, Toy())
    expected = rates(build_lr_scheduler(cfg, expected), expected, num)
    lazy = lazy_from_cfg_node(cfg)
    found = LazyTrainer.build_optimizer(lazy, Toy())
    multiplier = instantiate(lazy.lr_multiplier)
    # As Detectron2's hook makes the schedule of the trainer's length.
    found = rates(LRMultiplier(found, multiplier, lazy.train.max_iter), found, num)
    assert found == expected and len(set(found)) > 1


def test_the_keys_of_train():
    cfg = zoo(
        OUTPUT_DIR="there",
        MODEL__WEIGHTS="some.pth",
        SOLVER__MAX_ITER=77,
        SOLVER__AMP__ENABLED=True,
        SOLVER__CHECKPOINT_PERIOD=11,
        TEST__EVAL_PERIOD=13,
        MODEL__DEVICE="cpu",
        SEED=5,
        CUDNN_BENCHMARK=True,
        TEST__EXPECTED_RESULTS=[["bbox", "AP", 38.5, 0.2]],
    )
    train = lazy_from_cfg_node(cfg).train
    assert train.output_dir == "there" and train.init_checkpoint == "some.pth"
    assert train.max_iter == 77 and train.amp.enabled is True
    assert train.checkpointer.period == 11 and train.checkpointer.max_to_keep is None
    assert train.eval_period == 13 and train.device == "cpu" and train.seed == 5
    assert train.cudnn_benchmark is True
    assert train.expected_results == [["bbox", "AP", 38.5, 0.2]]
    assert train.clip_gradients == {
        "enabled": False, "clip_type": "value", "clip_value": 1.0, "norm_type": 2.0
    }  # fmt: skip
    # Nothing of it is lost when the rest is filled in.
    overrides = ["OUTPUT_DIR", "there", "SOLVER.AMP.ENABLED", "True", "SEED", "5"]
    complete = load_config(FASTER, overrides).train
    assert complete.output_dir == "there" and complete.seed == 5
    assert complete.amp == {"enabled": True, "dtype": "float16"}
    assert complete.checkpointer.max_to_keep is None and complete.num_pictures == 0


def plain(value):
    """Nested dicts and lists."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(x) for x in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize(
    "name",
    [FASTER, RETINANET, KEYPOINTS, "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
     "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
     "COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml", "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["stock", "converted", "saved"])
def test_the_cfg_node_comes_back(name, kind, tmp_path):
    cfg = zoo(name)
    if kind != "stock":
        cfg = convert(cfg, quiet=True)
    lazy = lazy_from_cfg_node(cfg)
    if kind == "saved":
        LazyConfig.save(lazy, str(tmp_path / "a.yaml"))
        lazy = LazyConfig.load(str(tmp_path / "a.yaml"))
    found = cfg_node(lazy.cfg)
    # Tuples within tuples come back as lists, which Detectron2 takes as well.
    assert plain(found) == plain(cfg)
    for key in ("DATASETS.TRAIN", "SOLVER.STEPS", "INPUT.MIN_SIZE_TRAIN"):
        parent, last = key.split(".")
        assert found[parent][last] == cfg[parent][last]
        assert type(found[parent][last]) is type(cfg[parent][last]) is tuple


def test_keys_that_a_user_has_added_come_back_too():
    cfg = zoo()
    cfg.USERS_OWN = CfgNode({"A": 1, "B": CfgNode({"C": (1, "x")})})
    assert plain(cfg_node(lazy_from_cfg_node(cfg).cfg)) == plain(cfg)


# Data ------------------------------------------------------------------------------------------


def mapper_of(cfg, is_train):
    """What DefaultTrainer's loader is made with."""
    cfg = cfg.clone()
    cfg.MODEL.LOAD_PROPOSALS, loads = False, cfg.MODEL.LOAD_PROPOSALS  # from no file here
    dataset = [{"file_name": "0.png"}]
    if is_train:
        mapper = _train_loader_from_config(cfg, dataset=dataset)["mapper"]
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("detectron2.data.build.get_detection_dataset_dicts", lambda *a, **k: [{}])
            mapper = _test_loader_from_config(cfg, cfg.DATASETS.TEST[0])["mapper"]
    if loads:
        cfg.MODEL.LOAD_PROPOSALS = True
        mapper = DatasetMapper(cfg, is_train=is_train)
    return mapper


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"INPUT__RANDOM_FLIP": "none"},
        {"INPUT__RANDOM_FLIP": "vertical", "INPUT__MIN_SIZE_TRAIN_SAMPLING": "range",
         "INPUT__MIN_SIZE_TRAIN": (100, 200)},
        {"INPUT__CROP__ENABLED": True, "INPUT__FORMAT": "RGB"},
        {"MODEL__MASK_ON": True, "INPUT__MASK_FORMAT": "bitmask"},
        {"MODEL__LOAD_PROPOSALS": True},
    ],
    ids=range(6),
)  # fmt: skip
@pytest.mark.parametrize("name", [FASTER, KEYPOINTS])
@pytest.mark.parametrize("is_train", [True, False])
def test_the_mappers_are_those_of_default_trainer(name, changes, is_train):
    cfg = zoo(name, **changes)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST
    node = lazy_from_cfg_node(cfg).dataloader
    found = instantiate((node.train if is_train else node.test).mapper)
    expected = mapper_of(cfg, is_train)
    assert type(found) is DatasetMapper
    assert repr(found.augmentations) == repr(expected.augmentations)
    apart = ("augmentations", "keypoint_hflip_indices")
    a, b = ({k: v for k, v in vars(m).items() if k not in apart} for m in (found, expected))
    assert a == b
    indices = found.keypoint_hflip_indices, expected.keypoint_hflip_indices
    assert np.array_equal(*indices) or indices == (None, None)


@pytest.fixture
def keypoint_set():
    """A registered set: images without, with a crowd, with 2 and with 12 visible keypoints."""
    names = ["yaml_config_keypoints", "yaml_config_more_keypoints"]

    def record(i, visible, crowd=0):
        points = [x for k in range(17) for x in (1.0, 1.0, 2 if k < visible else 0)]
        box = {"bbox": [1, 1, 20, 20], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        return {
            "file_name": f"{i}.png",
            "image_id": i,
            "height": 40,
            "width": 60,
            "annotations": [{**box, "iscrowd": crowd, "keypoints": points}] if visible >= 0 else [],
        }

    dicts = [record(0, -1), record(1, 0, crowd=1), record(2, 2), record(3, 12)]
    for name in names:
        DatasetCatalog.register(name, lambda: copy.deepcopy(dicts))
        MetadataCatalog.get(name).set(
            thing_classes=["person"],
            evaluator_type="coco",
            keypoint_names=[str(k) for k in range(17)],
            keypoint_flip_map=[],
        )
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.mark.parametrize(
    "name, changes, ids",
    [
        (FASTER, {}, [2, 3]),
        (FASTER, {"DATALOADER__FILTER_EMPTY_ANNOTATIONS": False}, [0, 1, 2, 3]),
        (KEYPOINTS, {}, [2, 3]),
        (KEYPOINTS, {"MODEL__ROI_KEYPOINT_HEAD__MIN_KEYPOINTS_PER_IMAGE": 4}, [3]),
        (FASTER, {"MODEL__ROI_KEYPOINT_HEAD__MIN_KEYPOINTS_PER_IMAGE": 4}, [2, 3]),
    ],
)
@pytest.mark.parametrize("num_sets", [1, 2])
def test_the_training_set_is_that_of_default_trainer(keypoint_set, name, changes, ids, num_sets):
    cfg = zoo(name, DATASETS__TRAIN=tuple(keypoint_set[:num_sets]), **changes)
    cfg.DATASETS.TEST = (keypoint_set[0],)
    lazy = lazy_from_cfg_node(cfg)
    found = instantiate(lazy.dataloader.train.dataset)
    assert [d["image_id"] for d in found] == ids * num_sets
    assert found == _train_loader_from_config(cfg)["dataset"]
    assert dataset_names(lazy.dataloader.train.dataset) == keypoint_set[:num_sets]
    # All images are evaluated.
    found = instantiate(lazy.dataloader.test.dataset)
    assert len(found) == 4
    assert found == _test_loader_from_config(cfg, keypoint_set[0])["dataset"]


def proposal_file(path, ids, side=30):
    boxes = [np.array([[0.0, 0, 10, 10], [5, 5, side, side]], np.float32) for _ in ids]
    scores = [np.array([0.5, 0.75], np.float32) for _ in ids]
    path.write_bytes(
        pickle.dumps({"ids": ids, "boxes": boxes, "objectness_logits": scores, "bbox_mode": 0})
    )
    return str(path)


def test_precomputed_proposals_come_with_both_sets(keypoint_set, tmp_path):
    cfg = zoo("COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml")
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (keypoint_set[0],)
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = (proposal_file(tmp_path / "a.pkl", [0, 1, 2, 3]),)
    cfg.DATASETS.PROPOSAL_FILES_TEST = (proposal_file(tmp_path / "b.pkl", [3, 2, 1, 0], 20),)
    node = lazy_from_cfg_node(cfg).dataloader
    for part, num, side in ((node.train, 2, 30), (node.test, 4, 20)):
        dicts = instantiate(part.dataset)
        assert len(dicts) == num and all(len(d["proposal_boxes"]) == 2 for d in dicts)
        assert dicts[0]["proposal_objectness_logits"].tolist() == [0.75, 0.5]
        assert dicts[0]["proposal_boxes"][0].tolist() == [5, 5, side, side]


def test_precomputed_proposals_of_the_first_of_two_test_sets(keypoint_set, tmp_path):
    cfg = zoo("COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml")
    cfg.DATASETS.TRAIN = (keypoint_set[0],)
    cfg.DATASETS.TEST = tuple(keypoint_set)
    files = [proposal_file(tmp_path / f"{i}.pkl", [0, 1, 2, 3]) for i in range(2)]
    cfg.DATASETS.PROPOSAL_FILES_TEST = tuple(files)
    node = lazy_from_cfg_node(cfg).dataloader.test
    assert all("proposal_boxes" in d for d in load_dataset(node.dataset))


def test_the_loader_has_the_settings_of_the_cfg_node(keypoint_set):
    cfg = zoo(
        DATASETS__TRAIN=(keypoint_set[0],),
        SOLVER__IMS_PER_BATCH=2,
        DATALOADER__ASPECT_RATIO_GROUPING=False,
        DATALOADER__NUM_WORKERS=3,
        SEED=7,
    )
    node = without_test_set(cfg).dataloader.train
    loader = instantiate(node)
    assert loader.num_workers == 3 and loader.dataset.seed == 7
    assert loader.batches.total_batch_size == 2
    assert type(loader.batches.sampler) is TrainingSampler
    assert not any(loader.batches.is_tall)
    assert repr(loader.dataset.mapper.mapper.augmentations) == repr(
        DatasetMapper(cfg, is_train=True).augmentations
    )
    assert node.aspect_ratio_grouping is False
    assert loader.dataset.unreadable == "stop"


def without_test_set(cfg):
    cfg.DATASETS.TEST = ()
    return lazy_from_cfg_node(cfg)


def test_rare_classes_are_repeated_if_so_configured():
    name = "yaml_config_rare"
    box = {"bbox": [1, 1, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}
    dicts = [
        {"file_name": f"{i}.png", "image_id": i, "height": 20, "width": 20,
         "annotations": [{**box, "category_id": int(i == 0)}]}
        for i in range(10)
    ]  # fmt: skip
    DatasetCatalog.register(name, lambda: dicts)
    try:
        cfg = zoo(
            DATASETS__TRAIN=(name,),
            SOLVER__IMS_PER_BATCH=2,
            DATALOADER__SAMPLER_TRAIN="RepeatFactorTrainingSampler",
            DATALOADER__REPEAT_THRESHOLD=0.9,
            SEED=7,
        )
        lazy = without_test_set(cfg)
        sampler = instantiate(lazy.dataloader.train).batches.sampler
        assert type(sampler) is RepeatFactorTrainingSampler
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, 0.9)
        found = sampler._int_part + sampler._frac_part
        assert torch.equal(found, factors) and factors[0] == 3
        first = [i for i, _ in zip(sampler._infinite_indices(), range(60))]
        again = instantiate(lazy.dataloader.train).batches.sampler
        assert first == [i for i, _ in zip(again._infinite_indices(), range(60))]
        assert 10 <= [int(i) for i in first].count(0) <= 20  # 3 of 12
        cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
        with pytest.raises(BadInput, match="SAMPLER_TRAIN = RandomSubsetTrainingSampler"):
            instantiate(without_test_set(cfg).dataloader.train)
    finally:
        DatasetCatalog.remove(name)


# Evaluation ------------------------------------------------------------------------------------


@pytest.fixture
def kind_of_set():
    names = []

    def register(kind):
        name = f"yaml_config_{kind}_{len(names)}"
        MetadataCatalog.get(name).set(**({"evaluator_type": kind} if kind else {}))
        names.append(name)
        return name

    yield register
    for name in names:
        MetadataCatalog.pop(name)


@pytest.mark.parametrize(
    "kind, evaluators",
    [
        ("coco", [COCOEvaluator]),
        (None, [COCOEvaluator]),
        ("lvis", [LVISEvaluator]),
        ("pascal_voc", [PascalVOCDetectionEvaluator]),
        ("coco_panoptic_seg", [COCOEvaluator, SemSegEvaluator, COCOPanopticEvaluator]),
    ],
)
def test_the_evaluator_is_that_of_the_test_set(kind_of_set, kind, evaluators):
    name = kind_of_set(kind)
    node = lazy_from_cfg_node(zoo(DATASETS__TEST=(name,))).dataloader.evaluator
    nodes = [node] if len(evaluators) == 1 else node
    assert [n._target_ for n in nodes] == evaluators
    assert [n.dataset_name for n in nodes] == [name] * len(evaluators)
    assert all("kpt_oks_sigmas" not in n for n in nodes)


def test_the_sigmas_of_keypoints_reach_the_evaluator(kind_of_set):
    cfg = zoo(DATASETS__TEST=(kind_of_set("coco"),), TEST__KEYPOINT_OKS_SIGMAS=[0.1, 0.2])
    node = lazy_from_cfg_node(cfg).dataloader.evaluator
    assert list(node.kpt_oks_sigmas) == [0.1, 0.2]


def test_a_set_that_cannot_be_evaluated_is_named(kind_of_set):
    name = kind_of_set("citizens")
    with pytest.raises(BadInput, match=f"{name}.*citizens.*coco_panoptic_seg"):
        lazy_from_cfg_node(zoo(DATASETS__TEST=(name,)))


def test_no_test_set_is_no_evaluation():
    node = lazy_from_cfg_node(zoo(DATASETS__TEST=())).dataloader
    assert set(node) == {"train"}


@pytest.mark.parametrize(
    "key, value",
    [
        ("TEST.PRECISE_BN.ENABLED", True),
        ("TEST.AUG.ENABLED", True),
        ("DATASETS.TEST", ("coco_2017_val", "coco_2014_val")),
    ],
)
def test_what_is_not_done_is_said(key, value):
    with log_lines() as lines:
        lazy_from_cfg_node(zoo())
    assert lines == []
    with log_lines() as lines:
        lazy = lazy_from_cfg_node(zoo(**{key.replace(".", "__"): value}))
    assert len(lines) == 1 and key in lines[0] and "ignored" in lines[0]
    if key == "DATASETS.TEST":
        assert dataset_names(lazy.dataloader.test.dataset) == ["coco_2017_val"]
        assert "coco_2014_val" in lines[0]


# Overrides -------------------------------------------------------------------------------------


def test_both_kinds_of_overrides_at_once():
    overrides = [
        "SOLVER.MAX_ITER", "50", "train.num_pictures=2", "SOLVER.STEPS", "(20,40)",
        "DATASETS.TRAIN", "('a','b')", "dataloader.train.unreadable=skip", "OUTPUT_DIR", "x=y",
        "optimizer.momentum=0.5", "cfg.SOLVER.BASE_LR=0.125", "SOLVER.MAX_ITER", "60",
    ]  # fmt: skip
    lazy = load_config(FASTER, overrides)
    assert lazy.train.max_iter == 60 == lazy.cfg.SOLVER.MAX_ITER
    assert lazy.train.num_pictures == 2 and lazy.train.output_dir == "x=y"
    assert lazy.dataloader.train.dataset.names == ["a", "b"]
    assert lazy.dataloader.train.unreadable == "skip"
    assert lazy.optimizer.momentum == 0.5 and lazy.optimizer.lr == 0.125
    assert lazy.optimizer.params.base_lr == 0.125
    assert cfg_node(lazy.cfg).SOLVER.STEPS == (20, 40)
    assert overrides[0] == "SOLVER.MAX_ITER"  # the list is the caller's


def test_overrides_win_over_the_conversion():
    overrides = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.3", "MODEL.SAMPLING_FREE.PRIOR", "0.1"]
    cfg = load_config(FASTER, overrides, True).cfg
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.3
    assert cfg.MODEL.ROI_HEADS.NAME == "SamplingFreeStandardROIHeads"
    lazy = load_config(model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.py"),
                       ["model.prior=0.1", "model.guide=2"], True)  # fmt: skip
    assert lazy.model.prior == 0.1 and lazy.model.guide == 2


@pytest.mark.parametrize(
    "overrides, parts",
    [
        (["SOLVER.MAX_ITR", "5"], ["SOLVER.MAX_ITR", "did you mean SOLVER.MAX_ITER?"]),
        (["solver.max_iter", "5"], ["solver.max_iter", "did you mean SOLVER?"]),
        (["SOLVR.MAX_ITER", "5"], ["'SOLVR' in the config", "did you mean SOLVER?"]),
        (["MODEL.SAMPLING_FREE.PRIR", "5"], ["did you mean MODEL.SAMPLING_FREE.PRIOR?"]),
        (["MODEL.SAMPLING_FREE.ZZZZ", "5"], ["known: ", "GUIDE"]),
        (["SOLVER.MAX_ITER.ONE", "5"], ["'ONE' in SOLVER.MAX_ITER"]),
        (["SOLVER.MAX_ITER"], ["SOLVER.MAX_ITER: its value is missing"]),
        (["SOLVER.MAX_ITER", "5", "SEED"], ["SEED: its value is missing"]),
        (["SOLVER.MAX_ITER", "many"], ["SOLVER.MAX_ITER many", "int", "str"]),
        (["MODEL.MASK_ON", "3"], ["MODEL.MASK_ON 3", "bool"]),
        (["SOLVER.MAX_ITER", "0"], ["train.max_iter=0"]),
        (["train.max_itr=5"], ["train.max_itr", "train.max_iter?"]),
        (["SOLVER.MAX_ITER", "5", "optimizer.lrr=1"], ["optimizer.lrr", "optimizer.lr?"]),
        (["--resume"], ["--resume", "in front"]),
    ],
)
def test_a_mistake_in_an_override_is_one_line(overrides, parts):
    line = message(FASTER, overrides)
    assert all(part in line for part in parts), line


def test_a_name_of_the_model_zoo_is_a_config_file():
    lazy = load_config(FASTER)
    assert cfg_node(lazy.cfg).MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    assert lazy.model.cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads"
    py = load_config("COCO-Detection/fcos_R_50_FPN_1x.py")
    assert py.model._target_.__name__ == "FCOS"
    for name in ("COCO-Detection/nothing.yaml", "COCO-Detection/nothing.py"):
        assert f"{name}: no such config file" in message(name)


def test_what_cannot_be_converted_is_one_line_of_load_config(tmp_path):
    assert "SemanticSegmentor" in message("Misc/semantic_R_50_FPN_1x.yaml", [], True)
    path = tmp_path / "a.yaml"
    path.write_text(f'_BASE_: "{ROOT / FASTER}"\nMODEL: {{ROI_HEADS: {{NAME: PointRend}}}}\n')
    assert "MODEL.ROI_HEADS.NAME = PointRend" in message(str(path), [], True)
    assert load_config(str(path)).cfg.MODEL.ROI_HEADS.NAME == "PointRend"
    # A LazyConfig, too.
    assert "ClassificationNet" in message("Misc/torchvision_imagenet_R_50.py", [], True)


def test_a_saved_run_of_a_yaml_config_is_converted_already(tmp_path):
    lazy = load_config(FASTER, [], True)
    LazyConfig.save(lazy, str(tmp_path / "config.yaml"))
    again = load_config(str(tmp_path / "config.yaml"), [], True)
    assert again.cfg == lazy.cfg


@pytest.mark.parametrize("text", [b"", b"\xff\xfe\x00"])
def test_no_config_with_the_wish_to_convert_it_is_one_line(tmp_path, text):
    path = tmp_path / "a.yaml"
    path.write_bytes(text)
    assert str(path) in message(str(path), [], True)


def test_a_part_of_a_config_that_is_to_be_converted_is_named(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("train = dict(max_iter=3)\n")
    assert str(path) in message(str(path), [], True)


def test_a_reference_world_size_is_not_ignored_in_silence():
    with log_lines() as lines:
        lazy = lazy_from_cfg_node(zoo(SOLVER__REFERENCE_WORLD_SIZE=8))
    assert lines or lazy.dataloader.train.total_batch_size == 2


# Training --------------------------------------------------------------------------------------


def trainer(config, *overrides, sampling_free=True, resume=False):
    """As train_net.py makes it."""
    cfg = load_config(config, list(overrides), sampling_free)
    seed_all_rng(cfg.train.seed)
    made = LazyTrainer(cfg)
    made.resume_or_load(resume=resume)
    return made


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def default_trainer(cfg, loader, sampling_free):
    """Detectron2's own trainer with its own optimizer, schedule and model; trained."""

    class Trainer(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return loader

    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = ()
    cfg.OUTPUT_DIR += "_default"
    Path(cfg.OUTPUT_DIR).mkdir()
    with log_lines("detectron2"):  # else it gives its loggers handlers for good
        seed_all_rng(cfg.SEED)
        made = Trainer(cfg)
        if sampling_free:
            made.register_hooks([PriorInit(cfg)])
        made.train()
    return made.model


SOLVER = ["SOLVER.BIAS_LR_FACTOR", "2.0", "SOLVER.WEIGHT_DECAY_NORM", "0.1",
          "SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR",
          "DATASETS.TEST", "()"]  # fmt: skip


FCOS = ["MODEL.META_ARCHITECTURE", "SamplingFreeFCOS"]
BASES = {
    "retinanet": (RETINANET, []),
    "fcos": (RETINANET, FCOS),
    "faster": (FASTER, SOLVER),
    "cascade": (CASCADE, []),
    "c4": (C4, []),
}
RUNS = [(name, how) for name in BASES for how in (True, False) if (name, how) != ("fcos", True)]


@pytest.mark.parametrize("name, converts", RUNS)
def test_default_trainer_gives_the_same_weights(tiny, name, converts, monkeypatch):
    monkeypatch.setattr(engine, "seed_step", lambda *args: None)  # DefaultTrainer has none
    base, pairs = BASES[name]
    ours = converts or name == "fcos"
    config, pairs = tiny(base), [*pairs, "DATASETS.TEST", "()"]
    made = trainer(config, *pairs, sampling_free=converts)
    loader = made.build_train_loader(
        made.cfg, load_dataset(made.cfg.dataloader.train.dataset), made.mapper
    )
    with log_lines() as lines:
        made.train()
    assert any("Prior of the training set" in x for x in lines) == ours
    cfg = read_cfg_node(config)
    cfg = convert(cfg, quiet=True) if converts else cfg
    cfg.merge_from_list(pairs)
    expected = default_trainer(cfg, loader, ours)
    assert type(made.model) is type(expected)
    assert same(state_of(made.model), state_of(expected))
    modules = {type(m).__module__.split(".")[0] for m in expected.modules()}
    assert ("sampling_free" in modules) == ours
    assert (Path(made.cfg.train.output_dir) / "prior.json").exists() == ours


def test_overrides_cannot_undo_the_conversion(tmp_path):
    pairs = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
             "True", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.02"]  # fmt: skip
    node = cfg_node(load_config(FASTER, pairs, True).cfg)
    assert node.MODEL.ROI_HEADS.NAME == "SamplingFreeCascadeROIHeads"
    assert node.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.02  # the user's word stands


def test_key_equals_value_and_whole_nodes():
    cfg = load_config(FASTER, ["SOLVER.MAX_ITER=10", "train.log_period=3"])
    assert (cfg.train.max_iter, cfg.train.log_period) == (10, 3)
    with pytest.raises(BadInput, match="MODEL.RPN: is a node; give one of its keys: .*HEAD_NAME"):
        load_config(FASTER, ["MODEL.RPN", "3"])


def test_the_weights_are_trained(tiny):
    made = trainer(tiny(FASTER), "DATASETS.TEST", "()")
    before = state_of(made.model)
    made.train()
    changed = [k for k, v in state_of(made.model).items() if not torch.equal(v, before[k])]
    for part in ("proposal_generator.rpn_head.conv", "roi_heads.box_head", "backbone.fpn_lateral2"):
        assert any(k.startswith(part) for k in changed), part
    rows = metrics(made.cfg.train.output_dir)
    assert {"guide/rpn/r", "guide/roi/r", "loss_rpn_cls", "loss_cls", "lr"} <= set(rows[3])


@pytest.mark.parametrize("ours", [True, False])  # the stock one draws its samples
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_last_bit(tiny, tmp_path, ours):
    options = dict(sampling_free=ours)
    whole = trainer(tiny(FASTER), "DATASETS.TEST", "()", **options)
    whole.train()
    out, part = tmp_path / "out", tmp_path / "part"
    part.mkdir()
    shutil.copy(out / "model_0000001.pth", part)
    (part / "last_checkpoint").write_text("model_0000001.pth")
    where = ("OUTPUT_DIR", str(part), "DATASETS.TEST", "()")
    resumed = trainer(tiny(FASTER), *where, resume=True, **options)
    assert resumed.start_iter == 2
    with log_lines() as lines:
        resumed.train()
    assert not any("Prior of the training set" in x for x in lines)
    assert same(state_of(resumed.model), state_of(whole.model))
    a, b = (load(p / "model_final.pth") for p in (part, out))
    assert same(a["trainer"]["_trainer"], b["trainer"]["_trainer"])
    assert same(a["prior"], b["prior"])


@pytest.mark.parametrize(
    "pairs",
    [
        ["SOLVER.MAX_ITER", "3"],  # a milestone of the file is there; the zoo's: 60000, 80000
        ["SOLVER.LR_SCHEDULER_NAME", "Linear"],
        ["MODEL.META_ARCHITECTURE", "RetinaNt"],
        ["MODEL.ROI_HEADS.NAME", "Heads"],
    ],
)
def test_a_value_that_detectron2_refuses_is_bad_input(tiny, pairs):
    with pytest.raises(BadInput):
        trainer(tiny(), *pairs, sampling_free=False)


def test_mixed_precision_of_the_yaml_config(tiny):
    made = trainer(tiny(FASTER), "SOLVER.AMP.ENABLED", "True", "train.amp.dtype=bfloat16",
                   "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1")  # fmt: skip
    seen = []
    made.model.roi_heads.box_predictor.cls_score.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    made.train()
    assert seen == [torch.bfloat16]


def test_the_class_count_of_a_yaml_config_is_checked(tiny):
    for base, key in ((FASTER, "MODEL.ROI_HEADS"), (RETINANET, "MODEL.RETINANET")):
        with pytest.raises(BadInput, match="has 5 classes"):
            trainer(tiny(base), f"{key}.NUM_CLASSES", "7")
        other = {"MODEL.ROI_HEADS": "MODEL.RETINANET"}.get(key, "MODEL.ROI_HEADS")
        trainer(tiny(base), f"{other}.NUM_CLASSES", "7")  # of no concern


def test_the_line_on_the_class_count_names_the_key_of_the_yaml_config(tiny):
    with pytest.raises(BadInput, match="MODEL.ROI_HEADS.NUM_CLASSES"):
        trainer(tiny(FASTER), "MODEL.ROI_HEADS.NUM_CLASSES", "7")


@pytest.mark.parametrize("sampling_free", [True, False])
def test_a_proposal_network_is_trained_on_any_number_of_classes(tiny, sampling_free):
    config = tiny("COCO-Detection/rpn_R_50_FPN_1x.yaml")
    pairs = ["MODEL.ROI_HEADS.NUM_CLASSES", "80", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()"]
    trainer(config, *pairs, sampling_free=sampling_free).train()


def test_a_proposal_network_is_trained_and_evaluated(tiny):
    made = trainer(tiny("COCO-Detection/rpn_R_50_FPN_1x.yaml"), "SOLVER.MAX_ITER", "1")
    assert set(made.train()) == {"box_proposals"}


def test_pictures_without_a_test_set_are_no_error_after_the_training(tiny):
    made = trainer(tiny(), "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1", "train.num_pictures=1")
    made.train()


def names(sets, split):
    """An override that registers the set in a process of its own."""
    files = f"json_file:{sets.files[split]},image_root:{sets.images[split]}"
    call = f"{{_target_:sampling_free.data.register_coco,name:yaml_config_own_{split},{files}}}"
    part = "train" if split == "train" else "test"
    return f"dataloader.{part}.dataset.names={call}"


def test_train_net_with_a_yaml_config(tiny, sets, tmp_path):
    config = tiny(RETINANET)
    overrides = ["SOLVER.MAX_ITER", "3", names(sets, "train"), names(sets, "val"),
                 "train.num_pictures=1", "SOLVER.STEPS", "(2,)"]  # fmt: skip
    done = train_net(config, "--sampling-free", *overrides)
    assert done.code == 0 and "Traceback" not in done.out + done.err, done.err
    assert done.out.count("Made sampling-free:") == 1
    assert "MODEL.META_ARCHITECTURE: RetinaNet -> SamplingFreeRetinaNet" in done.out
    assert "Prior of the training set" in done.out and "copypaste: AP,AP50" in done.out
    out = tmp_path / "out"
    assert {"config.yaml", "model_final.pth", "model_0000001.pth", "prior.json", "training.png",
            "best_threshold.json", "pictures"} <= {p.name for p in out.iterdir()}  # fmt: skip
    scores = {k: v for k, v in metrics(out)[3].items() if k.startswith("bbox/")}

    rows = f"[[bbox,AP,{scores['bbox/AP']},1e-9],[bbox,AP50,{scores['bbox/AP50']},1e-9]]"
    weights = ["MODEL.WEIGHTS", str(out / "model_final.pth")]
    arguments = ["--sampling-free", "--eval-only", *overrides, *weights]
    done = train_net(config, *arguments, f"train.expected_results={rows}")
    assert done.code == 0 and "copypaste: AP,AP50" in done.out, done.out + done.err
    assert "Prior of the training set" not in done.out

    # What the run has saved describes it.
    saved = load_config(str(out / "config.yaml"), ["train.max_iter=4", "train.num_pictures=0"])
    seed_all_rng(saved.train.seed)
    resumed = LazyTrainer(saved)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    assert load(out / "model_final.pth")["iteration"] == 3


class CountingEvaluator(DatasetEvaluator):
    """Counts the images that it is given."""

    def __init__(self, dataset_name):
        self.dataset_name = dataset_name

    def reset(self):
        self.num = 0

    def process(self, inputs, outputs):
        self.num += len(inputs)

    def evaluate(self):
        return {"own": {self.dataset_name: self.num}}


def test_several_evaluators_at_once(tiny, sets):
    made = trainer(tiny(), "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()")
    name = "${dataloader.test.dataset.names}"
    node = made.cfg.dataloader
    node.evaluator = [node.evaluator, L(CountingEvaluator)(dataset_name=name)]
    evaluators = LazyTrainer.build_evaluator(made.cfg)
    assert evaluators[0]._output_dir == f"{made.cfg.train.output_dir}/inference"
    results = made.train()
    assert results["own"] == {sets.names["val"]: 6} and "AP50" in results["bbox"]
