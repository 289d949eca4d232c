"""What convert() cannot convert is named in one line."""

import copy

import pytest
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    RetinaNet,
)
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    StandardROIHeads,
)
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
from sampling_free import BadInput, SamplingFreeRetinaNet, convert

# Refusals --------------------------------------------------------------------------------------


class OwnRPN(RPN):
    def _subsample_labels(self, label):
        return label


class OwnHeads(StandardROIHeads):
    def _sample_proposals(self, matched_idxs, matched_labels, gt_classes):
        return super()._sample_proposals(matched_idxs, matched_labels, gt_classes)


class RenamedHeads(StandardROIHeads):
    pass


class OwnPredictor(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()


class OwnRetinaNet(RetinaNet):
    def losses(self, *args):
        return {}


class OwnFCOS(FCOS):
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


class BiasHead(RetinaNetHead):
    """The user's own, with a bias: convertible."""


class Detector(nn.Module):
    pass


def set_target(key, target):
    def change(cfg):
        OmegaConf.select(cfg, key)._target_ = target

    return change


def set_value(key, value):
    def change(cfg):
        OmegaConf.update(cfg, key, value, merge=False)

    return change


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


REFUSALS = [
    (MASK_FPN, set_target("model.proposal_generator", OwnRPN),
     ["model.proposal_generator._target_", "OwnRPN", "_subsample_labels", "SamplingFreeRPN"]),
    (MASK_FPN, set_target("model.roi_heads", OwnHeads),
     ["model.roi_heads._target_", "OwnHeads", "_sample_proposals", "SamplingFreeStandardROIHeads"]),
    (MASK_FPN, set_target("model.roi_heads", RenamedHeads), ["model.roi_heads", "RenamedHeads"]),
    (MASK_FPN, set_target("model.roi_heads.box_predictor", OwnPredictor),
     ["model.roi_heads.box_predictor._target_", "OwnPredictor", "FastRCNNOutputLayers"]),
    (CASCADE, set_target("model.roi_heads.box_predictors[2]", OwnPredictor),
     ["model.roi_heads.box_predictors[2]._target_", "OwnPredictor"]),
    (RETINANET, set_target("model", OwnRetinaNet),
     ["model._target_", "OwnRetinaNet", "its own losses", "SamplingFreeRetinaNet"]),
    (FCOS_CONFIG, set_target("model", OwnFCOS), ["OwnFCOS", "label_anchors", "SamplingFreeFCOS"]),
    (RETINANET, set_target("model.head", NoBiasHead),
     ["model.head is", "NoBiasHead", "cls_score.bias"]),
    (RETINANET, set_target("model.head", OtherNamesHead),
     ["model.head is", "OtherNamesHead", "cls_score.bias"]),
    (MASK_FPN, set_target("model.proposal_generator.head", NoBiasRPNHead),
     ["model.proposal_generator.head is", "NoBiasRPNHead", "objectness_logits.bias"]),
    (RETINANET, set_target("model", Detector), ["model._target_", "Detector", "RetinaNet", "FCOS",
     "GeneralizedRCNN", "PanopticFPN", "ProposalNetwork"]),
    (RETINANET, set_target("model", "torch.nn.modules.linear.Linear"), ["Linear"]),
    (RETINANET, set_target("model", instantiate), ["model._target_", "instantiate"]),
    (RETINANET, set_value("model", {"backbone": 1}), ["model", "no call"]),
    (RETINANET, set_value("model", 3), ["model", "int", "no call"]),
    (RETINANET, set_value("model", [1]), ["model", "ListConfig", "no call"]),
    (RETINANET, set_value("model", None), ["model", "no call"]),
    (MASK_FPN, set_value("model.roi_heads", "heads"), ["model.roi_heads", "str", "no call"]),
    (MASK_FPN, set_value("model.roi_heads.box_predictor.use_fed_loss", True),
     ["model.roi_heads.box_predictor.use_fed_loss = True"]),
    (CASCADE, set_value("model.roi_heads.box_predictors[1].use_fed_loss", True),
     ["model.roi_heads.box_predictors[1].use_fed_loss = True"]),
]  # fmt: skip


@pytest.mark.parametrize("name, change, parts", REFUSALS, ids=range(len(REFUSALS)))
def test_what_cannot_be_converted_is_named_in_one_line(name, change, parts, capsys):
    cfg = stock(name)
    change(cfg)
    line = refusal(cfg, capsys)
    assert all(part in line for part in parts), line


class FailingHead(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        raise ValueError("two\nlines")


@pytest.mark.parametrize(
    "change, part",
    [
        (set_target("model", "no.such.Detector"), "no.such.Detector"),
        (set_target("model.head", FailingHead), "model.head"),
        (lambda cfg: cfg.model.pop("head"), "model.head"),
        (set_value("model.head", "???"), "model.head"),
    ],
    ids=range(4),
)
def test_what_cannot_even_be_built_is_named_in_one_line(change, part, capsys):
    cfg = stock(RETINANET)
    change(cfg)
    assert part in refusal(cfg, capsys)


def test_a_whole_number_for_the_loss_weight():
    node = stock(MASK_FPN).model
    node.proposal_generator.loss_weight = 2
    result = convert(node, quiet=True)
    assert result.proposal_generator.loss_weight == {"loss_rpn_cls": 2, "loss_rpn_loc": 0.5}


def test_a_read_only_lazy_config_is_converted_as_a_frozen_cfg_node_is():
    cfg = stock(RETINANET)
    OmegaConf.set_readonly(cfg, True)
    assert convert(cfg, quiet=True).model._target_ is SamplingFreeRetinaNet


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


FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"


@pytest.mark.parametrize(
    "pairs, parts",
    [
        (["MODEL.META_ARCHITECTURE", "SemanticSegmentor"],
         ["MODEL.META_ARCHITECTURE = SemanticSegmentor", "RetinaNet", "GeneralizedRCNN"]),
        (["MODEL.META_ARCHITECTURE", "OwnRCNN"], ["MODEL.META_ARCHITECTURE = OwnRCNN"]),
        (["MODEL.ROI_HEADS.NAME", "PointRendROIHeads"],
         ["MODEL.ROI_HEADS.NAME = PointRendROIHeads", "StandardROIHeads", "Res5ROIHeads"]),
        (["MODEL.ROI_HEADS.NAME", "RROIHeads"], ["MODEL.ROI_HEADS.NAME = RROIHeads"]),
        (["MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"],
         ["MODEL.PROPOSAL_GENERATOR.NAME = RRPN", "RPN"]),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_in_a_yaml_config_is_named(pairs, parts, capsys):
    cfg = stock(FASTER)
    cfg.merge_from_list(pairs)
    line = refusal(cfg, capsys)
    assert all(part in line for part in parts), line


def test_federated_loss_in_a_yaml_config_is_refused(capsys):
    cfg = stock(FASTER)
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = True  # v0.6 does not have the key
    assert "MODEL.ROI_BOX_HEAD.USE_FED_LOSS = True" in refusal(cfg, capsys)


def test_the_semantic_segmentation_of_the_zoo_is_refused(capsys):
    assert "SemanticSegmentor" in refusal(stock("Misc/semantic_R_50_FPN_1x.yaml"), capsys)


@pytest.mark.parametrize("value", [{"model": 1}, None, 3, "config.py", [1]])
def test_arguments_that_are_no_config_are_refused(value, capsys):
    line = refusal(value, capsys)
    assert type(value).__name__ in line and "LazyConfig" in line and "CfgNode" in line


def test_a_config_without_a_model_and_a_list_are_refused(capsys):
    assert "DictConfig" in refusal(OmegaConf.create({"train": {}}), capsys)
    assert "ListConfig" in refusal(OmegaConf.create([1]), capsys)
