"""What convert() changes in a config, and what it does not."""

import copy

import pytest
import torch
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    GeneralizedRCNN,
    ProposalNetwork,
)
from omegaconf import OmegaConf

from helpers.conversions import MEASURED, converted
from helpers.small_zoo import (
    CASCADE,
    FAMILIES,
    FCOS_CONFIG,
    LAZY,
    MASK_FPN,
    RETINANET,
    ROOT,
    YAML,
    check_guides,
    check_step,
    classes_of,
    differing,
    inputs_of,
    leaves,
    loaded,
    small,
    stock,
    training_step,
)
from helpers.tiny import tiny_fpn
from sampling_free import (
    SamplingFreeFastRCNNOutputLayers,
    SamplingFreeRetinaNet,
    SamplingFreeRPN,
    SamplingFreeStandardROIHeads,
    add_sampling_free_config,
    convert,
)

# What changes, and what does not ---------------------------------------------------------------


def check_printed(keys, changes):
    """Exactly what differs has been printed; what is unused has not changed."""
    unused = {k for k, (_, new) in changes.items() if new == "(unused)"}
    assert not unused & keys
    changes = set(changes) - unused
    targets = {k[: -len("._target_")] if k.endswith("._target_") else k for k in keys}
    unprinted = {k for k in targets if not any(f"{k}.".startswith(f"{c}.") for c in changes)}
    unmade = {c for c in changes if not any(f"{k}.".startswith(f"{c}.") for k in targets)}
    assert not unprinted and not unmade, (unprinted, unmade)


@pytest.mark.parametrize("name", LAZY)
def test_only_what_is_printed_changes_in_a_lazy_config(name, capsys):
    cfg = stock(name)
    result, changes = converted(cfg, capsys)
    assert differing(cfg, stock(name)) == set()  # the argument
    check_printed(differing(cfg, result), changes)
    again, more = converted(result, capsys)
    assert more == {} and differing(result, again) == set()


@pytest.mark.parametrize("name", YAML)
def test_only_what_is_printed_changes_in_a_yaml_config(name, capsys):
    cfg = stock(name)
    result, changes = converted(cfg, capsys)
    assert cfg == loaded(name)
    added = get_cfg()
    add_sampling_free_config(added)
    keys = differing(cfg, result)
    new = {k for k in keys if k.startswith("MODEL.SAMPLING_FREE.")}
    assert new == {k for k in leaves(added) if k not in leaves(cfg)}
    check_printed(keys - new, changes)
    again, more = converted(result, capsys)
    assert more == {} and again == result


EXPECTED = {
    RETINANET: {
        "model": ("RetinaNet", "SamplingFreeRetinaNet"),
        "model.focal_loss_alpha": ("0.25", "(dropped)"),
        "model.focal_loss_gamma": ("2.0", "(dropped)"),
        "model.prior": ("(none)", "auto"),
        "model.test_score_thresh": ("(none)", "0.001"),
    },
    FCOS_CONFIG: {
        "model": ("FCOS", "SamplingFreeFCOS"),
        "model.focal_loss_alpha": ("0.25", "(dropped)"),
        "model.focal_loss_gamma": ("2.0", "(dropped)"),
        "model.prior": ("(none)", "auto"),
        "model.test_score_thresh": ("0.2", "0.0316"),
    },
    MASK_FPN: {
        "model.proposal_generator": ("RPN", "SamplingFreeRPN"),
        "model.proposal_generator.loss_weight": (
            "(none)",
            "{'loss_rpn_cls': 1.0, 'loss_rpn_loc': 0.25}",
        ),
        "model.proposal_generator.batch_size_per_image": ("256", "(dropped)"),
        "model.proposal_generator.positive_fraction": ("0.5", "(dropped)"),
        "model.proposal_generator.prior": ("(none)", "auto"),
        "model.roi_heads": ("StandardROIHeads", "SamplingFreeStandardROIHeads"),
        "model.roi_heads.batch_size_per_image": ("512", "(dropped)"),
        "model.roi_heads.positive_fraction": ("0.25", "(dropped)"),
        "model.roi_heads.box_predictor": (
            "FastRCNNOutputLayers",
            "SamplingFreeFastRCNNOutputLayers",
        ),
        "model.roi_heads.box_predictor.loss_weight": (
            "(none)",
            "{'loss_cls': 1.0, 'loss_box_reg': 0.25}",
        ),
        "model.roi_heads.box_predictor.test_score_thresh": ("0.05", "0.001"),
    },
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_changes_of_each_family_are_these(name, capsys):
    assert converted(stock(name), capsys)[1] == EXPECTED[name]


def test_each_stage_of_a_cascade_is_converted(capsys):
    node, changes = converted(stock(CASCADE), capsys)
    assert changes["model.roi_heads"] == ("CascadeROIHeads", "SamplingFreeCascadeROIHeads")
    for i, predictor in enumerate(node.model.roi_heads.box_predictors):
        assert predictor._target_ is SamplingFreeFastRCNNOutputLayers
        assert predictor.test_score_thresh == 0.001
        assert predictor.loss_weight == {"loss_cls": 1.0, "loss_box_reg": 0.25}
        assert f"model.roi_heads.box_predictors.{i}.loss_weight" in changes


YAML_EXPECTED = {
    "COCO-Detection/retinanet_R_50_FPN_1x.yaml": {
        "MODEL.META_ARCHITECTURE": ("RetinaNet", "SamplingFreeRetinaNet"),
        "MODEL.RETINANET.FOCAL_LOSS_ALPHA": ("0.25", "(unused)"),
        "MODEL.RETINANET.FOCAL_LOSS_GAMMA": ("2.0", "(unused)"),
        "MODEL.RETINANET.SCORE_THRESH_TEST": ("0.05", "0.001"),
    },
    "COCO-Detection/rpn_R_50_FPN_1x.yaml": {
        "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN", "SamplingFreeRPN"),
        "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": ("1.0", "0.25"),
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": ("256", "(unused)"),
        "MODEL.RPN.POSITIVE_FRACTION": ("0.5", "(unused)"),
    },
    "COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml": {
        "MODEL.ROI_HEADS.NAME": ("StandardROIHeads", "SamplingFreeStandardROIHeads"),
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": ("1.0", "0.25"),
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": ("512", "(unused)"),
        "MODEL.ROI_HEADS.POSITIVE_FRACTION": ("0.25", "(unused)"),
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": ("0.05", "0.001"),
    },
}


@pytest.mark.parametrize("name", YAML_EXPECTED)
def test_the_changes_of_yaml_configs_are_these(name, capsys):
    assert converted(stock(name), capsys)[1] == YAML_EXPECTED[name]


@pytest.mark.parametrize("name", [*YAML_EXPECTED, "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml"])
@pytest.mark.parametrize("prior", [None, 0.01])
def test_it_is_said_whether_the_prior_will_be_measured(name, prior, capsys):
    cfg = get_cfg()
    add_sampling_free_config(cfg)
    cfg.merge_from_file(str(ROOT / name))
    cfg.MODEL.SAMPLING_FREE.PRIOR = prior
    convert(cfg)
    has_head = "fast_rcnn" not in name
    assert (MEASURED in capsys.readouterr().out) == (has_head and prior is None)


@pytest.mark.parametrize("name", [MASK_FPN, "COCO-Detection/retinanet_R_50_FPN_1x.yaml"])
def test_quiet_prints_nothing_and_gives_the_same(name, capsys):
    quiet, _ = converted(stock(name), capsys, quiet=True)
    loud, changes = converted(stock(name), capsys)
    assert differing(quiet, loud) == set() and changes


@pytest.mark.parametrize("name", FAMILIES)
def test_a_whole_config_and_its_model_node_give_the_same_model(name):
    cfg = stock(name)
    whole, node = convert(cfg, quiet=True).model, convert(cfg.model, quiet=True)
    assert differing(whole, node) == set()
    assert differing(cfg, stock(name)) == set()
    a, b = small(whole), small(node)
    assert type(a) is type(b) and classes_of(a) == classes_of(b)
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_references_still_resolve_after_the_conversion(name, whole):
    cfg = stock(name)
    node = convert(cfg, quiet=True).model if whole else convert(cfg.model, quiet=True)
    if "roi_heads" in node:
        node.roi_heads.num_classes = 7
        predictors = node.roi_heads.get("box_predictors") or [node.roi_heads.box_predictor]
        assert [p.num_classes for p in predictors] == [7] * len(predictors)
        assert node.roi_heads.mask_head.num_classes == 7
    else:
        node.num_classes = 7
        assert node.head.num_classes == 7
    assert differing(cfg, stock(name)) == set()


def test_references_beyond_the_model_node_resolve_too():
    cfg = stock(RETINANET)
    cfg.classes = 6
    cfg.model.num_classes = "${classes}"
    assert convert(cfg.model, quiet=True).head.num_classes == 6
    assert convert(cfg, quiet=True).model.head.num_classes == 6


def test_an_argument_stays_also_where_its_model_refers_to_parts_beside_it():
    cfg = stock(MASK_FPN)
    cfg.predictor = copy.deepcopy(cfg.model.roi_heads.box_predictor)
    cfg.predictor.num_classes = 80
    cfg.model.roi_heads.box_predictor = "${predictor}"
    before = copy.deepcopy(cfg)
    whole = convert(cfg, quiet=True)
    assert differing(cfg, before) == set()
    assert whole.predictor._target_ is SamplingFreeFastRCNNOutputLayers
    node = convert(cfg.model, quiet=True)
    assert node.roi_heads.box_predictor._target_ is SamplingFreeFastRCNNOutputLayers
    assert differing(cfg, before) == set()


def test_a_model_node_without_a_config_around_it():
    node = OmegaConf.create(
        OmegaConf.to_container(stock(RETINANET).model), flags={"allow_objects": True}
    )
    model = small(convert(node, quiet=True))
    assert type(model) is SamplingFreeRetinaNet and model.num_classes == 80


# The user's own parts --------------------------------------------------------------------------


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


def test_a_weight_for_both_losses_is_lowered_for_the_box_loss_alone():
    node = stock(MASK_FPN).model
    node.proposal_generator.loss_weight = 2.0
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


def test_a_node_of_the_users_own_that_is_called_fcos_stays():
    cfg = get_cfg()
    cfg.MODEL.FCOS = CfgNode({"THRESH": 0.5})
    cfg.merge_from_file(str(ROOT / "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    assert convert(cfg, quiet=True).MODEL.FCOS.THRESH == 0.5
