"""What convert() changes in a config, and what it does not."""

import copy

import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.modeling import build_model
from omegaconf import OmegaConf

from helpers.conversions import MEASURED, converted
from helpers.small_zoo import (
    CASCADE,
    CASCADE_YAML,
    FAMILIES,
    FCOS_CONFIG,
    MASK_FPN,
    RETINANET,
    differing,
    leaves,
    loaded,
    small,
    stock,
)
from helpers.tiny_points import points_cfg
from sampling_free import (
    ATSS,
    PAA,
    SamplingFreeATSS,
    SamplingFreeFastRCNNOutputLayers,
    SamplingFreePAA,
    SamplingFreeRetinaNet,
    add_sampling_free_config,
    convert,
)

RETINANET_YAML, FASTER_YAML, FAST_YAML, RPN_YAML = (
    f"COCO-Detection/{name}_R_50_FPN_1x.yaml"
    for name in ("retinanet", "faster_rcnn", "fast_rcnn", "rpn")
)


def check_printed(keys, changes):
    """Exactly what differs has been printed; what is unused has not changed."""
    unused = {k for k, (_, new) in changes.items() if new == "(unused)"}
    assert not unused & keys
    changes = set(changes) - unused
    targets = {k[: -len("._target_")] if k.endswith("._target_") else k for k in keys}
    unprinted = {k for k in targets if not any(f"{k}.".startswith(f"{c}.") for c in changes)}
    unmade = {c for c in changes if not any(f"{k}.".startswith(f"{c}.") for k in targets)}
    assert not unprinted and not unmade, (unprinted, unmade)


@pytest.mark.parametrize("name", FAMILIES)
def test_only_what_is_printed_changes_in_a_lazy_config(name, capsys):
    cfg = stock(name)
    result, changes = converted(cfg, capsys)
    assert differing(cfg, stock(name)) == set()  # the argument
    check_printed(differing(cfg, result), changes)
    again, more = converted(result, capsys)
    assert more == {} and differing(result, again) == set()
    quiet, _ = converted(cfg, capsys, quiet=True)
    assert differing(quiet, result) == set()


@pytest.mark.parametrize("name", [RETINANET_YAML, FASTER_YAML, *CASCADE_YAML[:1]])
@pytest.mark.parametrize("frozen", [True, False])
def test_only_what_is_printed_changes_in_a_yaml_config(name, frozen, capsys):
    cfg = stock(name)
    (cfg.freeze if frozen else cfg.defrost)()
    result, changes = converted(cfg, capsys)
    assert cfg == loaded(name) and "SAMPLING_FREE" not in cfg.MODEL
    assert result.is_frozen() == result.MODEL.SAMPLING_FREE.is_frozen() == frozen
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
    RETINANET_YAML: {
        "MODEL.META_ARCHITECTURE": ("RetinaNet", "SamplingFreeRetinaNet"),
        "MODEL.RETINANET.FOCAL_LOSS_ALPHA": ("0.25", "(unused)"),
        "MODEL.RETINANET.FOCAL_LOSS_GAMMA": ("2.0", "(unused)"),
        "MODEL.RETINANET.SCORE_THRESH_TEST": ("0.05", "0.001"),
    },
    RPN_YAML: {
        "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN", "SamplingFreeRPN"),
        "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": ("1.0", "0.25"),
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": ("256", "(unused)"),
        "MODEL.RPN.POSITIVE_FRACTION": ("0.5", "(unused)"),
    },
    FAST_YAML: {
        "MODEL.ROI_HEADS.NAME": ("StandardROIHeads", "SamplingFreeStandardROIHeads"),
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": ("1.0", "0.25"),
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": ("512", "(unused)"),
        "MODEL.ROI_HEADS.POSITIVE_FRACTION": ("0.25", "(unused)"),
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": ("0.05", "0.001"),
    },
}


@pytest.mark.parametrize("name", YAML_EXPECTED)
@pytest.mark.parametrize("prior", [None, 0.01])
def test_the_changes_of_yaml_configs_are_these(name, prior, capsys):
    cfg = stock(name)
    add_sampling_free_config(cfg)
    cfg.MODEL.SAMPLING_FREE.PRIOR = prior
    capsys.readouterr()
    convert(cfg)
    # Whether the prior will be measured is said too.
    has_head = name != FAST_YAML
    assert (MEASURED in capsys.readouterr().out) == (has_head and prior is None)
    assert converted(cfg, capsys)[1] == YAML_EXPECTED[name]


POINTS = [(ATSS, SamplingFreeATSS), (PAA, SamplingFreePAA)]


@pytest.mark.parametrize(("focal", "ours"), POINTS)
def test_atss_and_paa_in_a_lazy_config(focal, ours, capsys):
    node = stock(FCOS_CONFIG).model
    node._target_, node.topk, node.num_classes = focal, 7, 4
    node.test_score_thresh = 0.05
    result, changes = converted(node, capsys)
    assert changes == {
        **EXPECTED[FCOS_CONFIG],
        "model": (focal.__name__, ours.__name__),
        "model.test_score_thresh": ("0.05", "0.001"),
    }
    assert node._target_ is focal and "prior" not in node
    with torch.device("meta"):
        before, model = instantiate(node), instantiate(result)
    assert (type(before), type(model)) == (focal, ours) and model.topk == 7
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in before.state_dict().items()
    }
    del node["test_score_thresh"]
    assert convert(node, quiet=True).test_score_thresh == 0.001
    node.test_score_thresh = 1e-5
    assert convert(node, quiet=True).test_score_thresh == 1e-5
    result.test_score_thresh, result.prior = "per_class", 0.02
    assert converted(result, capsys) == (result, {})


@pytest.mark.parametrize(("focal", "ours"), POINTS)
def test_atss_and_paa_in_a_cfg_node(focal, ours, capsys):
    name = focal.__name__
    key = f"MODEL.SAMPLING_FREE.{name}.SCORE_THRESH_TEST"
    cfg = points_cfg(name, f"MODEL.SAMPLING_FREE.{name}.TOPK", 7)
    result, changes = converted(cfg, capsys)
    expected = dict(YAML_EXPECTED[RETINANET_YAML])
    del expected["MODEL.RETINANET.SCORE_THRESH_TEST"]  # Detectron2's own
    expected["MODEL.META_ARCHITECTURE"] = (name, ours.__name__)
    assert changes == {**expected, key: ("None", "0.001")}
    model = build_model(result)
    assert type(model) is ours and model.test_score_thresh == 0.001 and model.topk == 7
    cfg.merge_from_list([key, 1e-5])
    assert convert(cfg, quiet=True).MODEL.SAMPLING_FREE[name].SCORE_THRESH_TEST == 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_a_whole_config_and_its_model_node_give_the_same_and_references_resolve(name):
    cfg = stock(name)
    whole, node = convert(cfg, quiet=True).model, convert(cfg.model, quiet=True)
    assert differing(whole, node) == set()
    for model in (whole, node):
        if "roi_heads" in model:
            heads = model.roi_heads
            heads.num_classes = 7
            predictors = heads.get("box_predictors") or [heads.box_predictor]
            assert {p.num_classes for p in (*predictors, heads.mask_head)} == {7}
        else:
            model.num_classes = 7
            assert model.head.num_classes == 7
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
    OmegaConf.set_readonly(node, True)
    result = convert(node, quiet=True)
    OmegaConf.set_readonly(result, False)
    model = small(result)
    assert type(model) is SamplingFreeRetinaNet and model.num_classes == 80
