"""convert on what was converted, saved, frozen or written with names."""

import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    build_model,
)
from omegaconf import DictConfig, ListConfig, OmegaConf

from helpers.conversions import converted
from helpers.small_zoo import (
    FAMILIES,
    MASK_C4,
    MASK_FPN,
    PRIOR,
    RETINANET,
    ROOT,
    classes_of,
    differing,
    inputs_of,
    set_prior,
    shrink,
    small,
    stock,
    training_step,
)
from sampling_free import add_sampling_free_config, convert

# Names instead of classes, as a saved config has them ------------------------------------------


def name_of(cls):
    return f"{cls.__module__}.{cls.__name__}"


def with_names(node):
    """Replaces classes by their names, in place."""
    for key in node:
        if OmegaConf.is_interpolation(node, key):
            continue
        value = node[key]
        if isinstance(value, DictConfig):
            with_names(value)
        elif isinstance(value, ListConfig):
            [with_names(x) for x in value if isinstance(x, DictConfig)]
        elif key == "_target_" and isinstance(value, type):
            node[key] = name_of(value)


@pytest.mark.parametrize("name", FAMILIES)
def test_targets_given_as_names_are_converted_as_classes_are(name):
    cfg = stock(name)
    expected = convert(cfg, quiet=True).model
    with_names(cfg.model)
    assert isinstance(cfg.model._target_, str)
    result = convert(cfg, quiet=True).model
    a, b = small(result), small(expected)
    assert classes_of(a) == classes_of(b) and type(a) is type(b)
    again = convert(result, quiet=True)
    assert differing(result, again) == set()


@pytest.mark.parametrize("name", [RETINANET, MASK_FPN, MASK_C4])
def test_a_converted_config_that_is_saved_and_loaded_again_works(name, tmp_path, capsys):
    cfg = convert(stock(name), quiet=True)
    shrink(cfg.model)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    loaded = LazyConfig.load(str(tmp_path / "config.yaml"))
    result, changes = converted(loaded, capsys)
    assert changes == {}
    set_prior(result.model), set_prior(cfg.model)
    a, b = instantiate(result.model), instantiate(cfg.model)
    b.load_state_dict(a.state_dict())  # the file has its keys in another order
    assert type(a) is type(b) and classes_of(a) == classes_of(b)
    assert training_step(a, inputs_of(80)) == training_step(b, inputs_of(80))


# Frozen and repeated YAML configs --------------------------------------------------------------


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_cfg_node_stays_frozen(frozen):
    cfg = stock("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    if frozen:
        cfg.freeze()
    else:
        cfg.defrost()
    result = convert(cfg, quiet=True)
    assert cfg.is_frozen() == result.is_frozen() == frozen
    assert result.MODEL.is_frozen() == result.MODEL.SAMPLING_FREE.is_frozen() == frozen
    assert "SAMPLING_FREE" not in cfg.MODEL


def test_a_second_conversion_scales_no_weight_again():
    cfg = stock("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT = 2.0
    once = convert(cfg, quiet=True)
    twice = convert(once, quiet=True)
    for node in (once.MODEL, twice.MODEL):
        assert node.RPN.BBOX_REG_LOSS_WEIGHT == 0.5
        assert node.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT == 0.25
    assert once == twice


def test_settings_of_this_project_in_a_cfg_node_stay():
    cfg = get_cfg()
    add_sampling_free_config(cfg)
    cfg.merge_from_file(str(ROOT / "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    cfg.MODEL.SAMPLING_FREE.PRIOR = 0.003
    cfg.MODEL.SAMPLING_FREE.GUIDE = 1.0
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1e-5
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE = "giou"
    cfg.USERS_OWN = CfgNode({"KEY": 1})
    result = convert(cfg, quiet=True)
    assert result.MODEL.SAMPLING_FREE == cfg.MODEL.SAMPLING_FREE
    assert result.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 1e-5
    assert result.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT == 0.25  # the positive fraction
    assert result.MODEL.RPN.BBOX_REG_LOSS_WEIGHT == 0.25
    assert result.USERS_OWN.KEY == 1


def test_lazy_and_yaml_conversions_give_equal_losses():
    # The same detector by both ways, with the same weights on the same batch.
    lazy = convert(stock("common/models/mask_rcnn_fpn.py").model, quiet=True)
    del lazy.roi_heads["mask_head"], lazy.roi_heads["mask_pooler"]
    del lazy.roi_heads["mask_in_features"]
    lazy.proposal_generator.pre_nms_topk = lazy.proposal_generator.post_nms_topk = (40, 40)
    lazy.proposal_generator.prior = PRIOR
    lazy.backbone.bottom_up.freeze_at = 2
    cfg = convert(stock("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"), quiet=True)
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SAMPLING_FREE.PRIOR = PRIOR
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 40
    with torch.device("meta"):
        shapes = [
            {k: v.shape for k, v in m.state_dict().items()}
            for m in (instantiate(lazy), build_model_on_meta(cfg))
        ]
    assert shapes[0] == shapes[1]
    lazy.roi_heads.box_head.fc_dims = [16, 16]
    lazy.roi_heads.box_predictor.input_shape = ShapeSpec(channels=16)
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    a, b = instantiate(lazy), build_model(cfg)
    b.load_state_dict(a.state_dict())
    assert training_step(a, inputs_of(80)) == training_step(b, inputs_of(80))


def build_model_on_meta(cfg):
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    return build_model(cfg)
