"""The LazyConfig made of a YAML config: optimizer, schedule, data, evaluators."""

import json

import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.solver import LRMultiplier, build_lr_scheduler, build_optimizer

from helpers.tiny_run import same
from helpers.yaml_files import FASTER, KEYPOINTS, zoo
from sampling_free.config.cfg_node import cfg_node, lazy_from_cfg_node
from sampling_free.config.load import load_config
from sampling_free.engine.trainer import LazyTrainer

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


@pytest.mark.parametrize(
    "name",
    [FASTER, KEYPOINTS, "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
     "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
     "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml"],
)  # fmt: skip
def test_the_cfg_node_comes_back(name, tmp_path):
    cfg = zoo(name)
    cfg.USERS_OWN = CfgNode({"A": 1, "B": CfgNode({"C": (1, "x")})})
    lazy = lazy_from_cfg_node(cfg)
    LazyConfig.save(lazy, str(tmp_path / "a.yaml"))
    for one in (lazy, LazyConfig.load(str(tmp_path / "a.yaml"))):
        found = cfg_node(one.cfg)
        # Tuples within tuples come back as lists, which Detectron2 takes as well.
        assert json.dumps(found) == json.dumps(cfg)
        for key in ("DATASETS.TRAIN", "SOLVER.STEPS", "INPUT.MIN_SIZE_TRAIN"):
            parent, last = key.split(".")
            assert found[parent][last] == cfg[parent][last]
            assert type(found[parent][last]) is type(cfg[parent][last]) is tuple
