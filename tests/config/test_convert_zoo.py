"""Every detector config of Detectron2 is converted, built and trained for a step."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import detectron2
import pytest
import torch
from detectron2.modeling import PanopticFPN, ProposalNetwork, build_model
from torch import nn

from helpers.small_zoo import (
    CASCADE,
    CASCADE_YAML,
    LAZY,
    NOT_CONVERTIBLE,
    PRIOR,
    SWAPPED,
    YAML,
    check_step,
    classes_of,
    found,
    small,
    stock,
)
from sampling_free import BadInput, convert


class Mlp(nn.Sequential):
    def __init__(self, in_features, hidden_features, act_layer):
        first = nn.Linear(in_features, hidden_features)
        super().__init__(first, act_layer(), nn.Linear(hidden_features, in_features))


@pytest.fixture
def timm(monkeypatch):
    """Stands in for the two layers of it that Detectron2's ViT has, where it is not installed."""
    if importlib.util.find_spec("timm") is None:
        layers = SimpleNamespace(DropPath=nn.Dropout, Mlp=Mlp)
        for name in ("timm", "timm.models", "timm.models.layers"):
            monkeypatch.setitem(sys.modules, name, layers)


@pytest.mark.parametrize("name", LAZY)
def test_every_lazy_config_is_converted_and_trained(name, timm):
    node = convert(stock(name), quiet=True).model
    num_classes = node.num_classes if "num_classes" in node else node.roi_heads.num_classes
    model = small(node)
    values = check_step(model, num_classes)
    assert ("loss_mask" in values) == ("mask_head" in node.get("roi_heads", {}))
    assert ("loss_keypoint" in values) == ("keypoint" in name)
    assert ("loss_sem_seg" in values) == ("panoptic" in name)
    stages = [k for k in values if k.startswith("loss_cls_stage")]
    assert len(stages) == (3 if name == CASCADE else 0)


def small_yaml(cfg, dconv=False):
    """A CfgNode made small in place."""
    cfg.defrost()
    m = cfg.MODEL
    m.DEVICE = "cpu"
    m.SAMPLING_FREE.PRIOR = PRIOR
    gn = m.RESNETS.NORM == "GN"
    m.RESNETS.DEPTH = 50
    m.RESNETS.STEM_OUT_CHANNELS = 32 if gn else 8
    m.RESNETS.RES2_OUT_CHANNELS = 32
    m.RESNETS.NUM_GROUPS = min(m.RESNETS.NUM_GROUPS, 4)
    m.RESNETS.WIDTH_PER_GROUP = (32 if gn else 8) // m.RESNETS.NUM_GROUPS
    if not dconv:
        m.RESNETS.DEFORM_ON_PER_STAGE = [False] * 4
    m.FPN.OUT_CHANNELS = m.SEM_SEG_HEAD.CONVS_DIM = 32
    m.RPN.PRE_NMS_TOPK_TRAIN = m.RPN.POST_NMS_TOPK_TRAIN = 40
    m.ROI_BOX_HEAD.FC_DIM = 16
    m.ROI_BOX_HEAD.CONV_DIM = m.ROI_MASK_HEAD.CONV_DIM = 32
    return cfg


@pytest.mark.parametrize("name", YAML)
def test_every_yaml_config_is_converted_and_trained(name):
    cfg = convert(stock(name), quiet=True)
    has_deform = any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE)
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    assert num_classes == cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80
    if has_deform:  # its layers need Detectron2's compiled part, some only to run
        try:
            model = build_model(small_yaml(cfg.clone(), dconv=True))
        except ImportError as e:
            assert "detectron2._C" in str(e)
        else:
            assert any("Deform" in type(m).__name__ for m in model.modules())
            assert classes_of(model) <= set(SWAPPED.values())
    torch.manual_seed(0)
    model = build_model(small_yaml(cfg))
    values = check_step(model, num_classes)
    assert has_deform == ("dconv" in name)
    assert ("loss_rpn_cls" in values) == ("fast_rcnn" not in name and "retinanet" not in name)
    assert ("loss_mask" in values) == ("mask" in name or "panoptic" in name)
    assert ("loss_cls_stage2" in values) == ("cascade" in name)
    assert (type(model) is ProposalNetwork) == ("/rpn_" in name)
    assert (type(model) is PanopticFPN) == ("panoptic" in name) == ("loss_sem_seg" in values)


OTHERS = [name for name in found("**/*.yaml") if name not in YAML]
PROJECTS = Path(detectron2.__file__).parents[1] / "projects"  # in a checkout
LAZY_PROJECTS = [str(p) for x in ("ViTDet", "MViTv2") for p in PROJECTS.glob(f"{x}/configs/*/*.py")]
REFUSED = {
    "semantic_R_50": "SemanticSegmentor",
    "normalized_training": "NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS",
    "/LVIS/": "use_fed_loss",
}


@pytest.mark.long
@pytest.mark.parametrize("name", [*OTHERS, *LAZY_PROJECTS])
def test_every_other_config_is_converted_or_refused_in_one_line(name):
    cfg = stock(name)
    reason = next((REFUSED[part] for part in REFUSED if part in name), None)
    if reason:
        with pytest.raises(BadInput, match=reason) as e:
            convert(cfg, quiet=True)
        assert len(str(e.value).splitlines()) == 1
    elif name in OTHERS:
        model = build_model(small_yaml(convert(cfg, quiet=True)))
        assert classes_of(model) <= set(SWAPPED.values())
    elif "model" in cfg:  # some are parts of others; and these are large
        assert type(convert(cfg, quiet=True).model) is type(cfg.model)


def test_every_config_of_a_detector_is_found():
    rest = set(found("**/*.py")) - set(LAZY) - set(NOT_CONVERTIBLE)
    assert all(n.startswith("common/") and not n.startswith("common/models") for n in rest), rest
    in_models = [n for n in LAZY if n.startswith("common/")]
    assert len(LAZY) - len(in_models) >= 21 and len(in_models) >= 7
    assert len(CASCADE_YAML) == 4 and len(YAML) - len(CASCADE_YAML) >= 16
