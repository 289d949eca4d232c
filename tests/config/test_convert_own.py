"""convert() on what a user has made of a config, on saved configs, and in both kinds alike."""

import pytest
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, ProposalNetwork, build_model
from omegaconf import OmegaConf

from helpers.conversions import converted
from helpers.small_zoo import (
    FAMILIES,
    FCOS_CONFIG,
    MASK_FPN,
    PRIOR,
    RETINANET,
    ROOT,
    check_guides,
    check_step,
    classes_of,
    differing,
    inputs_of,
    set_prior,
    shrink,
    small,
    stock,
    training_step,
)
from helpers.tiny import tiny_fpn
from sampling_free import (
    SamplingFreeATSS,
    SamplingFreeFastRCNNOutputLayers,
    SamplingFreeRetinaNet,
    SamplingFreeRPN,
    SamplingFreeStandardROIHeads,
    add_sampling_free_config,
    convert,
)

FASTER_YAML = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"


class OwnRCNN(GeneralizedRCNN):
    pass


def test_own_backbone_head_sizes_and_class_count_of_a_retinanet():
    cfg = stock(RETINANET)
    cfg.model.backbone = L(tiny_fpn)()
    cfg.model.head.input_shape = [ShapeSpec(channels=8)] * 5
    cfg.model.head.conv_dims = [12]
    cfg.model.num_classes = 4
    cfg.model.test_score_thresh = 1e-4  # lower already
    cfg.model.prior, cfg.model.guide = 0.02, "iteration"  # those of their own stay
    model = instantiate(convert(cfg, quiet=True).model)
    assert type(model) is SamplingFreeRetinaNet and model.num_classes == 4
    assert type(model.backbone) is type(tiny_fpn())
    assert model.head.cls_score.weight.shape == (9 * 4, 12, 3, 3)
    assert model.test_score_thresh == 1e-4 and model.prior == 0.02
    check_guides({**training_step(model, inputs_of(4)), "dense": 0})


def test_own_sizes_weights_and_subclass_of_an_rcnn():
    cfg = stock(MASK_FPN)
    node = cfg.model
    node._target_ = OwnRCNN
    node.roi_heads.num_classes = 2
    node.roi_heads.box_head.fc_dims = [24]
    node.roi_heads.box_predictor.input_shape = ShapeSpec(channels=24)
    node.roi_heads.box_predictor.loss_weight = {"loss_cls": 1.0, "loss_box_reg": 2.0}
    node.proposal_generator.loss_weight = 3.0
    node.proposal_generator.box_reg_loss_type = "giou"
    node.roi_heads.box_predictor.smooth_l1_beta = 0.5
    result = convert(cfg, quiet=True).model
    assert result._target_ is OwnRCNN
    # GIoU has no coordinates to average: times the positive fraction.
    assert result.proposal_generator.loss_weight == {"loss_rpn_cls": 3.0, "loss_rpn_loc": 1.5}
    predictor = result.roi_heads.box_predictor
    assert predictor.loss_weight == {"loss_cls": 1.0, "loss_box_reg": 0.5}
    assert predictor.smooth_l1_beta == 0.5 and predictor.num_classes == 2
    assert result.roi_heads.box_head.fc_dims == [24]


@pytest.mark.parametrize("weight", [2, 2.0])
def test_a_weight_for_both_losses_is_lowered_for_the_box_loss_alone(weight):
    node = stock(MASK_FPN).model
    node.proposal_generator.loss_weight = weight
    result = convert(node, quiet=True)
    assert result.proposal_generator.loss_weight == {"loss_rpn_cls": 2.0, "loss_rpn_loc": 0.5}


def test_what_is_sampling_free_already_stays(capsys):
    cfg = convert(stock(MASK_FPN), quiet=True)
    cfg.model.proposal_generator.prior = 0.004
    cfg.model.proposal_generator.loss_weight = {"loss_rpn_loc": 0.125}
    cfg.model.roi_heads.box_predictor.loss_weight = {"loss_cls": 1.0, "loss_box_reg": 1.0}
    cfg.model.roi_heads.box_predictor.guide = "frozen"
    result, changes = converted(cfg, capsys)
    assert changes == {} and differing(cfg, result) == set()


def test_a_model_without_proposal_generator_and_one_without_roi_heads():
    node = stock(MASK_FPN).model
    node.proposal_generator = None
    result = convert(node, quiet=True)
    assert result.proposal_generator is None
    assert result.roi_heads._target_ is SamplingFreeStandardROIHeads
    node = stock(MASK_FPN).model
    node._target_ = ProposalNetwork
    del node["roi_heads"], node["input_format"]
    model = small(convert(node, quiet=True))
    assert type(model) is ProposalNetwork
    values = check_step(model, 80)
    assert set(values) == {"loss_rpn_cls", "loss_rpn_loc"}


class MyRetinaNet(SamplingFreeRetinaNet):
    pass


class MyATSS(SamplingFreeATSS):
    pass


class MyRPN(SamplingFreeRPN):
    pass


class MyHeads(SamplingFreeStandardROIHeads):
    pass


class MyPredictor(SamplingFreeFastRCNNOutputLayers):
    pass


@pytest.mark.parametrize(
    "name, key, cls",
    [
        (RETINANET, "model", MyRetinaNet),
        (FCOS_CONFIG, "model", MyATSS),
        (MASK_FPN, "model.proposal_generator", MyRPN),
        (MASK_FPN, "model.roi_heads", MyHeads),
        (MASK_FPN, "model.roi_heads.box_predictor", MyPredictor),
    ],
)
def test_what_is_derived_from_a_sampling_free_class_stays(name, key, cls):
    cfg = stock(name)
    OmegaConf.select(cfg, key)._target_ = cls
    result = convert(cfg, quiet=True)
    assert OmegaConf.select(result, key)._target_ is cls


def test_settings_of_the_users_own_in_a_cfg_node_stay():
    cfg = get_cfg()
    add_sampling_free_config(cfg)
    cfg.merge_from_file(str(ROOT / FASTER_YAML))
    cfg.MODEL.SAMPLING_FREE.PRIOR = 0.003
    cfg.MODEL.SAMPLING_FREE.GUIDE = "frozen"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1e-5
    cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT = 2.0
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE = "giou"
    cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 0.2
    cfg.MODEL.FCOS = CfgNode({"THRESH": 0.5})
    result = convert(cfg, quiet=True)
    assert result.MODEL.SAMPLING_FREE == cfg.MODEL.SAMPLING_FREE
    assert result.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 1e-5
    assert result.MODEL.RPN.BBOX_REG_LOSS_WEIGHT == 0.5
    assert result.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT == 0.2
    assert result.MODEL.FCOS.THRESH == 0.5


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_that_a_run_has_saved_is_converted_and_a_converted_one_saved(
    name, tmp_path, capsys
):
    def saved(cfg):
        LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
        return LazyConfig.load(str(tmp_path / "config.yaml"))

    cfg = stock(name)
    shrink(cfg.model)
    from_names = saved(cfg)
    assert isinstance(from_names.model._target_, str)
    expected = convert(cfg, quiet=True)
    again, changes = converted(saved(expected), capsys)
    assert changes == {}
    models = []
    for config in (expected, convert(from_names, quiet=True), again):
        set_prior(config.model)
        models.append(instantiate(config.model))
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())  # the file has its keys in another order
        assert classes_of(model) == classes_of(models[0])
    first, *others = (training_step(model, inputs_of(80)) for model in models)
    assert others == [first, first]


def test_lazy_and_yaml_conversions_give_equal_losses():
    # The same detector by both ways, with the same weights on the same batch.
    lazy = convert(stock("common/models/mask_rcnn_fpn.py").model, quiet=True)
    for key in ("mask_head", "mask_pooler", "mask_in_features"):
        del lazy.roi_heads[key]
    lazy.proposal_generator.pre_nms_topk = lazy.proposal_generator.post_nms_topk = (40, 40)
    lazy.proposal_generator.prior = PRIOR
    lazy.backbone.bottom_up.freeze_at = 2
    lazy.roi_heads.box_head.fc_dims = [16, 16]
    lazy.roi_heads.box_predictor.input_shape = ShapeSpec(channels=16)
    cfg = convert(stock(FASTER_YAML), quiet=True)
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SAMPLING_FREE.PRIOR = PRIOR
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 40
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    a, b = instantiate(lazy), build_model(cfg)
    b.load_state_dict(a.state_dict())
    assert training_step(a, inputs_of(80)) == training_step(b, inputs_of(80))
