"""Detectron2's YAML configs: the keys of this project, and which files they are."""

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

import sampling_free
from helpers.tiny_run import environment, write_config
from helpers.yaml_files import FASTER, RETINANET, ROOT, message, zoo
from sampling_free import BadInput
from sampling_free.config.cfg_node import is_cfg_node_file
from sampling_free.config.load import load_config

# Newer setuptools have no pkg_resources, which Detectron2's main branch asks for its model zoo.
IN_A_NEW_PROCESS = """
import sys

class Without:
    def find_spec(name, path=None, target=None):
        if name == "pkg_resources":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Without)
import sampling_free
from detectron2.config import get_cfg
sampling_free.add_sampling_free_config(get_cfg())
from detectron2.modeling import (
    META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, ROI_HEADS_REGISTRY
)
for registry in (META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, ROI_HEADS_REGISTRY):
    print(*sorted(n for n, x in registry if x.__module__.startswith("sampling_free")))
from detectron2 import model_zoo
print(model_zoo.get_config_file("common/train.py"), "pkg_resources" in sys.modules)
"""


def test_the_keys_make_every_class_known_to_detectron2_and_the_zoo_needs_no_pkg_resources():
    done = subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    *registries, zoo = [line.split() for line in done.stdout.splitlines()]
    assert os.path.isfile(zoo[0]) and zoo[1] == "False"
    assert registries == [
        ["ATSS", "GHMRetinaNet", "OHEMRetinaNet", "PAA", "SamplingFreeATSS", "SamplingFreeFCOS",
         "SamplingFreePAA", "SamplingFreeRetinaNet"],
        ["GHMRPN", "OHEMRPN", "SamplingFreeRPN"],
        ["OHEMStandardROIHeads", "SamplingFreeCascadeROIHeads", "SamplingFreeRes5ROIHeads",
         "SamplingFreeStandardROIHeads"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("PRIOR", "0.01", 0.01),
        ("PRIOR", "1e-3", 0.001),  # a string to YAML
        ("PRIOR", "auto", "auto"),
        ("PRIOR", '"0.02"', 0.02),
        ("GUIDE", "iteration", "iteration"),
        ("GUIDE", "1", 1),
    ],
)
def test_a_key_takes_a_number_or_a_word_by_file_and_by_command_line(tmp_path, key, text, value):
    path = tmp_path / "a.yaml"
    base = f'_BASE_: "{ROOT / RETINANET}"\n'
    pair = [f"MODEL.SAMPLING_FREE.{key}", text.strip('"')]
    for line, overrides in ((f"MODEL: {{SAMPLING_FREE: {{{key}: {text}}}}}\n", []), ("", pair)):
        path.write_text(base + line)
        found = load_config(str(path), overrides, True).cfg.MODEL.SAMPLING_FREE[key]
        assert found == value and type(found) is type(value)


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


@pytest.mark.parametrize("name", BY_HAND)
def test_the_settings_reach_each_class(name):
    model, cls = built_with_settings(name), getattr(sampling_free, name)
    (part,) = of_class(model, cls)
    assert type(part) is cls
    if not name.endswith("ROIHeads"):
        assert part.prior == 0.02 and part.guide.key == 0.5
        bias = -np.log((1 - 0.02) / 0.02)
        assert part.classifier_bias.tolist() == pytest.approx([bias] * len(part.classifier_bias))
        return
    predictors = of_class(model, sampling_free.SamplingFreeFastRCNNOutputLayers)
    assert len(predictors) == (3 if "Cascade" in name else 1)
    for predictor in predictors:
        assert predictor.guide.key == 0.5 and predictor.softmax_prior == 0.003
        scores = predictor.cls_score.bias.softmax(0)
        assert scores[:-1].tolist() == pytest.approx([0.003] * 80)
    if "Res5" not in name:
        assert model.roi_heads.max_mask_positives == 7
    # The transforms of Detectron2's own.
    stock = of_class(build_model(small(zoo(BY_HAND[name][0]))), FastRCNNOutputLayers)
    found, expected = (
        [(m.box2box_transform.weights, m.bbox_pred.weight.shape) for m in heads]
        for heads in (predictors, stock)
    )
    assert found == expected and len(set(found)) == len(found)


def test_a_limit_of_masks_that_c4_does_not_know_is_refused():
    base, changes = BY_HAND["SamplingFreeRes5ROIHeads"]
    cfg = small(zoo(base, MODEL__SAMPLING_FREE__MAX_MASK_POSITIVES=7, **changes))
    with pytest.raises(BadInput, match="MAX_MASK_POSITIVES.*Res5ROIHeads"):
        build_model(cfg)


def test_an_absent_prior_is_to_be_measured_and_an_absent_guide_is_the_recommended():
    base, changes = BY_HAND["SamplingFreeRetinaNet"]
    model = build_model(small(zoo(base, **changes)))
    assert model.prior == "auto" and model.guide.key == "gradient"
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


@pytest.mark.parametrize("prior", ["2", "many"])
def test_a_prior_that_is_none_is_refused_when_the_model_is_built(prior):
    cfg = small(zoo(RETINANET, MODEL__META_ARCHITECTURE="SamplingFreeRetinaNet"))
    cfg.merge_from_list(["MODEL.SAMPLING_FREE.PRIOR", prior])
    with pytest.raises(BadInput, match="prior"):
        build_model(cfg)


def test_the_files_of_the_zoo_are_yaml_configs():
    paths = [str(p) for p in ROOT.rglob("*.yaml")]
    assert len(paths) > 50 and all(map(is_cfg_node_file, paths))


@pytest.mark.parametrize(
    "name, text, known",
    [
        ("a.yaml", "_BASE_: b.yaml\n", True),
        ("a.yml", "# a comment\nSOLVER:\n  MAX_ITER: 3\n", True),
        ("a.yaml", "OUTPUT_DIR : somewhere\n", True),
        ("a.yaml", "model:\n  MODEL: 3\n", False),
        ("a.yaml", "", False),
        ("a.py", "MODEL: 3\n", False),
    ],
)
def test_what_tells_a_yaml_config_of_detectron2(tmp_path, name, text, known):
    (tmp_path / name).write_text(text)
    assert is_cfg_node_file(str(tmp_path / name)) == known


def test_a_lazy_config_that_a_run_has_saved_is_none(tmp_path):
    # With a name in capitals too.
    lines = "\nfrom detectron2.model_zoo import get_config\n"
    lines += "SGD = get_config('common/optim.py').SGD\noptimizer = SGD\n"
    lazy = load_config(write_config(tmp_path, lines))
    for name, cfg in (("lazy", lazy), ("node", load_config(FASTER, [], True))):
        path = str(tmp_path / f"{name}.yaml")
        LazyConfig.save(cfg, path)
        assert not is_cfg_node_file(path)
        assert load_config(path).train == cfg.train


def test_a_broken_file_is_named(tmp_path):
    texts = "SOLVER: {MAX_ITR: 3}", "SOLVER: {MAX_ITER: three}", "SOLVER: [", "_BASE_: no.yaml"
    for text in texts:
        path = tmp_path / "a.yaml"
        path.write_text(text + "\n")
        assert message(str(path)).startswith(f"{path}: "), text
