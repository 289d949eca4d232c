"""What convert() cannot convert is named in one line."""

import copy

import pytest
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import StandardROIHeads
from omegaconf import DictConfig, OmegaConf
from torch import nn

from helpers.small_zoo import (
    CASCADE,
    FCOS_CONFIG,
    MASK_FPN,
    NOT_CONVERTIBLE,
    RETINANET,
    ROOT,
    differing,
    stock,
)
from sampling_free import ATSS, BadInput, SamplingFreeRetinaNet, convert


class OwnRPN(RPN):
    def _subsample_labels(self, label):
        return label


class OwnHeads(StandardROIHeads):
    def _sample_proposals(self, matched_idxs, matched_labels, gt_classes):
        return super()._sample_proposals(matched_idxs, matched_labels, gt_classes)


class OwnPredictor(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()


class OwnRetinaNet(RetinaNet):
    def losses(self, *args):
        return {}


class OwnATSS(ATSS):
    def label_anchors(self, *args):
        return super().label_anchors(*args)


class NoBiasHead(RetinaNetHead):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.cls_score.bias = None


class OtherNamesHead(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()


class NoBiasRPNHead(StandardRPNHead):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.objectness_logits = nn.Conv2d(8, 3, 1, bias=False)


class FailingHead(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        raise ValueError("two\nlines")


class BiasHead(RetinaNetHead):
    """The user's own, with a bias: convertible."""


class Detector(nn.Module):
    pass


def refusal(cfg, capsys):
    """The line; nothing is printed and the argument stays."""
    before = copy.deepcopy(cfg)
    capsys.readouterr()
    with pytest.raises(BadInput) as e:
        convert(cfg)
    assert capsys.readouterr() == ("", "")
    line = str(e.value)
    assert len(line.splitlines()) == 1
    if isinstance(cfg, (CfgNode, DictConfig)):
        assert differing(cfg, before) == set()
    return line


# A key gets a value, or a target where that is a class or a function.
REFUSALS = [
    (MASK_FPN, "model.proposal_generator", OwnRPN,
     ["model.proposal_generator._target_", "OwnRPN", "_subsample_labels", "SamplingFreeRPN"]),
    (MASK_FPN, "model.roi_heads", OwnHeads,
     ["model.roi_heads._target_", "OwnHeads", "_sample_proposals", "SamplingFreeStandardROIHeads"]),
    (CASCADE, "model.roi_heads.box_predictors[2]", OwnPredictor,
     ["model.roi_heads.box_predictors[2]._target_", "OwnPredictor", "FastRCNNOutputLayers"]),
    (RETINANET, "model", OwnRetinaNet,
     ["model._target_", "OwnRetinaNet", "its own losses", "SamplingFreeRetinaNet"]),
    (FCOS_CONFIG, "model", OwnATSS, ["OwnATSS", "label_anchors", "sampling_free.SamplingFreeATSS"]),
    (RETINANET, "model.head", NoBiasHead, ["model.head is", "NoBiasHead", "cls_score.bias"]),
    (RETINANET, "model.head", OtherNamesHead,
     ["model.head is", "OtherNamesHead", "cls_score.bias"]),
    (MASK_FPN, "model.proposal_generator.head", NoBiasRPNHead,
     ["model.proposal_generator.head is", "NoBiasRPNHead", "objectness_logits.bias"]),
    (RETINANET, "model.head", FailingHead, ["model.head", "two lines"]),
    (RETINANET, "model.head", "???", ["model.head"]),
    (RETINANET, "model", Detector, ["model._target_", "Detector", "RetinaNet", "FCOS",
     "GeneralizedRCNN", "PanopticFPN", "ProposalNetwork"]),
    (RETINANET, "model", instantiate, ["model._target_", "instantiate"]),
    (RETINANET, "model._target_", "no.such.Detector", ["no.such.Detector"]),
    (RETINANET, "model", {"backbone": 1}, ["model", "no call"]),
    (RETINANET, "model", None, ["model", "no call"]),
    (MASK_FPN, "model.roi_heads", "heads", ["model.roi_heads", "str", "no call"]),
    (MASK_FPN, "model.roi_heads.box_predictor.use_sigmoid_ce", True,
     ["model.roi_heads.box_predictor.use_sigmoid_ce = True: has no prior"]),
    (CASCADE, "model.roi_heads.box_predictors[1].use_fed_loss", True,
     ["model.roi_heads.box_predictors[1].use_fed_loss = True"]),
]  # fmt: skip


@pytest.mark.parametrize("name, key, value, parts", REFUSALS, ids=range(len(REFUSALS)))
def test_what_cannot_be_converted_is_named_in_one_line(name, key, value, parts, capsys):
    cfg = stock(name)
    if callable(value):
        OmegaConf.select(cfg, key)._target_ = value
    else:
        OmegaConf.update(cfg, key, value, merge=False)
    line = refusal(cfg, capsys)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize("kind", NOT_CONVERTIBLE)
def test_the_models_of_other_frameworks_are_refused(kind, capsys):
    try:
        cfg = LazyConfig.load(str(ROOT / kind))
    except ImportError as e:  # mmdet's wrapper, on some versions
        pytest.skip(str(e))
    line = refusal(cfg, capsys)
    assert NOT_CONVERTIBLE[kind] in line and line.startswith("model._target_ = ")


def test_a_bias_is_all_that_a_head_of_ones_own_needs():
    cfg = stock(RETINANET)
    cfg.model.head._target_ = BiasHead
    assert convert(cfg, quiet=True).model.head._target_ is BiasHead
    cfg.model.head = instantiate(stock(RETINANET).model.head)  # an object in place of a call
    assert convert(cfg, quiet=True).model._target_ is SamplingFreeRetinaNet
    cfg.model.head = NoBiasHead(
        input_shape=[ShapeSpec(channels=8)], num_classes=2, num_anchors=1, conv_dims=[8]
    )
    with pytest.raises(BadInput, match="NoBiasHead.*cls_score.bias"):
        convert(cfg)


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"META_ARCHITECTURE": "SemanticSegmentor"},
         ["MODEL.META_ARCHITECTURE = SemanticSegmentor", "RetinaNet", "GeneralizedRCNN"]),
        ({"META_ARCHITECTURE": "OwnATSS"}, ["MODEL.META_ARCHITECTURE = OwnATSS", "ATSS"]),
        ({"ROI_HEADS.NAME": "PointRendROIHeads"},
         ["MODEL.ROI_HEADS.NAME = PointRendROIHeads", "StandardROIHeads", "Res5ROIHeads"]),
        ({"PROPOSAL_GENERATOR.NAME": "RRPN"}, ["MODEL.PROPOSAL_GENERATOR.NAME = RRPN", "RPN"]),
        ({"ROI_BOX_HEAD.USE_FED_LOSS": True}, ["MODEL.ROI_BOX_HEAD.USE_FED_LOSS = True"]),
        ({"KEYPOINT_ON": True, "ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": False},
         ["MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS = False"]),
    ],
    ids=range(6),
)  # fmt: skip
def test_what_cannot_be_converted_in_a_yaml_config_is_named(changes, parts, capsys):
    cfg = stock("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    for key, value in changes.items():
        node, _, last = f"MODEL.{key}".rpartition(".")
        node = cfg.MODEL if node == "MODEL" else cfg.MODEL[node.partition(".")[2]]
        node[last] = value  # v0.6 does not have all of them
    line = refusal(cfg, capsys)
    assert all(part in line for part in parts), line


NO_CONFIGS = [{"model": 1}, None, "a.py", OmegaConf.create({"train": {}}), OmegaConf.create([])]


@pytest.mark.parametrize("value", NO_CONFIGS, ids=range(len(NO_CONFIGS)))
def test_arguments_that_are_no_config_are_refused(value, capsys):
    line = refusal(value, capsys)
    assert type(value).__name__ in line and "LazyConfig" in line and "CfgNode" in line
