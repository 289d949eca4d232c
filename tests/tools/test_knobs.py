"""The list of knobs: which act, under which key, with which value."""

import copy
import functools
import json
import sys

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

import list_knobs as tool
from helpers.config_files import BASELINES, FOLDER, SAMPLING_FREE, WHOLE, cases, config
from helpers.small_zoo import LAZY, MASK_C4, MASK_FPN, RETINANET
from sampling_free import BadInput
from sampling_free.config.load import load_config
from sampling_free.knobs import list_knobs

FOCAL = {
    "model.focal_loss_alpha": 0.25,
    "model.focal_loss_gamma": 2.0,
    "model.head.prior_prob": 0.01,
}
RPN_SAMPLER = {
    "model.proposal_generator.batch_size_per_image": 256,
    "model.proposal_generator.positive_fraction": 0.5,
}
ROI_SAMPLER = {
    "model.roi_heads.batch_size_per_image": 512,
    "model.roi_heads.positive_fraction": 0.25,
}
SAMPLERS = {**RPN_SAMPLER, **ROI_SAMPLER}
FOCAL_YAML = {
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": 0.25,
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": 2.0,
    "MODEL.RETINANET.PRIOR_PROB": 0.01,
}
RPN_YAML = {"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256, "MODEL.RPN.POSITIVE_FRACTION": 0.5}
ROI_YAML = {"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512, "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25}
SAMPLERS_YAML = {**RPN_YAML, **ROI_YAML}
SEGMENTATION_YAML = {"MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": 0.5}
LVIS_YAML = {
    "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
    "DATALOADER.REPEAT_THRESHOLD": 0.001,
}
BCCD = FOLDER / "bccd"
RETINANET_YAML = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
FASTER_YAML = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
GIOU_YAML = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_giou.yaml"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x"
KEYPOINTS = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x"


def values(rows):
    found = {x.key: x.value for x in rows}
    assert len(found) == len(rows)  # no key is listed twice
    # What repeats is newer than v0.6.
    found.pop("DATALOADER.REPEAT_SQRT", None)
    return found


def knobs(path, *overrides, **kwargs):
    return values(list_knobs(load_config(str(path), overrides, **kwargs)).knobs)


@functools.lru_cache(None)
def listed(path):
    """Of a config of the repository."""
    return list_knobs(config(path))


def line(function, *args):
    with pytest.raises(BadInput) as error:
        function(*args)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def run(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["list_knobs.py", *map(str, args)])
    tool.main()
    return capsys.readouterr().out


# The configs of the repository -----------------------------------------------------------------


def box_predictors(model):
    """{name: node} of each stage."""
    if "box_predictor" in model.roi_heads:
        return {"box_predictor": model.roi_heads.box_predictor}
    return {f"box_predictors.{i}": x for i, x in enumerate(model.roi_heads.box_predictors)}


@cases(SAMPLING_FREE)
def test_a_sampling_free_config_has_nothing_to_tune(path):
    cfg = config(path)
    found = listed(path)
    constant_guide = {"model.guide": 1.0} if path.stem.endswith("_bce") else {}
    assert values(found.knobs) == constant_guide
    constants = values(found.constants)
    weights = {k: v for k, v in constants.items() if k.endswith("guide.weight")}
    if "roi_heads" in cfg.model:
        names = [f"model.roi_heads.{x}" for x in box_predictors(cfg.model)]
        expected = dict.fromkeys([f"{x}.guide.weight" for x in names], 2.0)
        expected["model.proposal_generator.guide.weight"] = 1.0
        assert weights == expected
        rpn = cfg.model.proposal_generator.loss_weight.loss_rpn_loc
        boxes = [constants[f"{x}.loss_weight.loss_box_reg"] for x in names]
        assert constants["model.proposal_generator.loss_weight.loss_rpn_loc"] == rpn
        assert rpn == (0.125 if "_authors" in path.stem or path.parent.name == "voc" else 0.25)
        assert set(boxes) == {0.25}
    else:
        assert weights == ({} if constant_guide else {"model.guide.weight": 1.0})


@cases(BASELINES)
def test_a_baseline_has_the_knobs_of_its_config(path):
    model, found = config(path).model, values(listed(path).knobs)
    if "roi_heads" in model:
        expected = dict(SAMPLERS)
        for key in expected:
            _, part, last = key.split(".")
            expected[key] = model[part][last]
        assert found == expected and len(found) == 4
    else:
        assert found == FOCAL
        assert found["model.focal_loss_alpha"] == model.focal_loss_alpha


@cases(WHOLE)
def test_the_test_settings_are_those_of_the_config(path):
    cfg = config(path)
    found = values(listed(path).test_settings)
    if "roi_heads" in cfg.model:
        rpn = cfg.model.proposal_generator
        last, node = list(box_predictors(cfg.model).items())[-1]
        assert found == {
            "model.proposal_generator.pre_nms_topk.1": rpn.pre_nms_topk[1],
            "model.proposal_generator.post_nms_topk.1": rpn.post_nms_topk[1],
            "model.proposal_generator.nms_thresh": rpn.nms_thresh,
            f"model.roi_heads.{last}.test_score_thresh": node.test_score_thresh,
            f"model.roi_heads.{last}.test_nms_thresh": 0.5,
            f"model.roi_heads.{last}.test_topk_per_image": 100,
        }
    else:
        # The detectors' defaults, which these configs leave as they are.
        assert found == {
            "model.test_score_thresh": cfg.model.test_score_thresh,
            "model.test_topk_candidates": 1000,
            "model.test_nms_thresh": 0.5 if "retinanet" in path.stem else 0.6,
            "model.max_detections_per_image": 100,
            **({"model.score_voting": True} if "paa" in path.stem else {}),
        }


@pytest.mark.parametrize("kind", ["atss", "paa"])
@pytest.mark.parametrize("suffix", ["", "_focal"])
def test_the_published_weights_of_the_box_loss_belong_to_the_detector(kind, suffix):
    found = values(list_knobs(config(FOLDER / "demo" / f"{kind}{suffix}.py")).constants)
    assert found["model.box_loss_weight"] == {"atss": 2.0, "paa": 1.3}[kind]
    assert found.get("model.iou_loss_weight") == {"atss": None, "paa": 0.5}[kind]


# Detectron2's own ------------------------------------------------------------------------------


def expected_of(path):
    """Of a LazyConfig of the zoo, in all of which the numbers are Detectron2's defaults."""
    if "retinanet" in path or "fcos" in path:
        return FOCAL
    return {**SAMPLERS, **({"model.sem_seg_head.loss_weight": 0.5} if "panoptic" in path else {})}


@pytest.mark.parametrize(
    "path", [n for n in LAZY if not n.startswith("common/") and "new_baselines" not in n]
)
def test_a_lazyconfig_of_the_zoo(path):
    assert knobs(path) == expected_of(path)
    converted = knobs(path, variant="sampling_free")
    assert converted == {k: v for k, v in expected_of(path).items() if "sem_seg" in k}


@pytest.mark.parametrize(
    ("path", "expected", "left"),
    [
        (RETINANET_YAML, FOCAL_YAML, {}),
        (FASTER_YAML, SAMPLERS_YAML, {}),
        ("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", SAMPLERS_YAML, {}),
        ("COCO-Detection/rpn_R_50_FPN_1x.yaml", RPN_YAML, {}),
        ("COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml", ROI_YAML, {}),
        ("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", SAMPLERS_YAML, {}),
        (f"{KEYPOINTS}.yaml", SAMPLERS_YAML, {}),
        (
            GIOU_YAML,
            {
                **SAMPLERS_YAML,
                "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 2.0,
                "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 10.0,
            },
            # Set by hand before; the conversion multiplies it by the share of foreground.
            {"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 2.5},
        ),
        (f"{PANOPTIC}.yaml", {**SAMPLERS_YAML, **SEGMENTATION_YAML}, SEGMENTATION_YAML),
        (
            "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
            {**LVIS_YAML, **SAMPLERS_YAML},
            LVIS_YAML,
        ),
    ],
)
def test_a_yaml_config_of_the_zoo_before_and_after_its_conversion(path, expected, left):
    assert knobs(path) == expected
    assert knobs(path, variant="sampling_free") == left


def test_a_keypoint_loss_that_is_divided_by_a_fixed_number():
    key = "MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS"
    expected = {**SAMPLERS_YAML, key: 17 * 512 * 0.25}
    assert knobs(f"{KEYPOINTS}.yaml", key, "False") == expected


def test_the_weight_of_all_instances_of_a_panoptic_config():
    key = "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT"
    found = knobs(f"{PANOPTIC}.yaml", key, "0.7")
    assert found == {**SAMPLERS_YAML, **SEGMENTATION_YAML, key: 0.7}


# What acts and what does not -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "override", "found"),
    [
        (BCCD / "retinanet_R_18_FPN.py", "model.prior=0.02", {"model.prior": 0.02}),
        (BCCD / "fcos_R_18_FPN.py", "model.prior=0.02", {"model.prior": 0.02}),
        (BCCD / "atss_R_18_FPN.py", "model.prior=[0.1,0.2,0.3]", {"model.prior": (0.1, 0.2, 0.3)}),
        (BCCD / "paa_R_18_FPN.py", "model.guide=0.3", {"model.guide": 0.3}),
        (BCCD / "retinanet_R_18_FPN.py", "model.prior=per_class", {}),
        (BCCD / "retinanet_R_18_FPN.py", "model.guide=frozen", {}),
        (BCCD / "retinanet_R_18_FPN.py", "model.box_reg_loss_weight=0.25", {}),
        (
            BCCD / "retinanet_R_18_FPN.py",
            "model.box_reg_loss_weight=0.7",
            {"model.box_reg_loss_weight": 0.7},
        ),
        (BCCD / "atss_R_18_FPN.py", "model.box_loss_weight=1.3", {"model.box_loss_weight": 1.3}),
        (BCCD / "paa_R_18_FPN.py", "model.iou_loss_weight=1.0", {}),
        (BCCD / "paa_R_18_FPN.py", "model.iou_loss_weight=2.0", {"model.iou_loss_weight": 2.0}),
        # Accepted and unused.
        (BCCD / "retinanet_R_18_FPN.py", "model.focal_loss_alpha=0.5", {}),
        (BCCD / "retinanet_R_18_FPN.py", "model.head.prior_prob=0.5", {}),
        (BCCD / "faster_rcnn_R_18_FPN.py", "model.proposal_generator.positive_fraction=0.9", {}),
        (BCCD / "faster_rcnn_R_18_FPN.py", "model.roi_heads.batch_size_per_image=9", {}),
        (
            BCCD / "faster_rcnn_R_18_FPN.py",
            "model.proposal_generator.loss_weight.loss_rpn_cls=3.0",
            {},
        ),
        (
            BCCD / "faster_rcnn_R_18_FPN.py",
            "model.proposal_generator.loss_weight.loss_rpn_loc=0.3",
            {"model.proposal_generator.loss_weight.loss_rpn_loc": 0.3},
        ),
        (
            BCCD / "faster_rcnn_R_18_FPN.py",
            "model.roi_heads.box_predictor.loss_weight.loss_box_reg=0.125",
            {"model.roi_heads.box_predictor.loss_weight.loss_box_reg": 0.125},
        ),
        (
            BCCD / "faster_rcnn_R_18_FPN.py",
            "model.roi_heads.box_predictor.softmax_prior=0.01",
            {"model.roi_heads.box_predictor.softmax_prior": 0.01},
        ),
        (
            FOLDER / "demo" / "mask_rcnn.py",
            "model.roi_heads.max_mask_positives=64",
            {"model.roi_heads.max_mask_positives": 64},
        ),
        (
            FOLDER / "demo" / "mask_rcnn.py",
            "model.roi_heads.mask_head.loss_weight=2.0",
            {"model.roi_heads.mask_head.loss_weight": 2.0},
        ),
        (
            FOLDER / "demo" / "cascade_rcnn.py",
            "model.roi_heads.box_predictors.1.guide=0.5",
            {"model.roi_heads.box_predictors.1.guide": 0.5},
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
def test_an_override_of_a_sampling_free_config(path, override, found):
    assert knobs(path, override) == found


def test_the_weight_of_a_classification_loss_acts_under_a_constant_guide():
    where = "model.proposal_generator"
    found = knobs(
        BCCD / "faster_rcnn_R_18_FPN.py", f"{where}.loss_weight.loss_rpn_cls=3.0",
        f"{where}.guide=1.0",
    )  # fmt: skip
    assert found == {f"{where}.guide": 1.0, f"{where}.loss_weight.loss_rpn_cls": 3.0}


def test_one_weight_for_both_losses_has_one_key():
    cfg = config(BCCD / "faster_rcnn_R_18_FPN_sampled.py")
    cfg.model.proposal_generator.loss_weight = 0.5
    before = knobs(BCCD / "faster_rcnn_R_18_FPN_sampled.py")
    after = values(list_knobs(cfg).knobs)
    assert after == {**before, "model.proposal_generator.loss_weight": 0.5}


def test_of_a_yaml_config_the_keys_of_sampling_free():
    node = "MODEL.SAMPLING_FREE"
    pairs = [f"{node}.PRIOR", "0.02", f"{node}.GUIDE", "0.5", "MODEL.RPN.LOSS_WEIGHT", "2.0"]
    assert knobs(FASTER_YAML, *pairs, variant="sampling_free") == {
        f"{node}.PRIOR": 0.02,
        f"{node}.GUIDE": 0.5,  # of both heads: listed once
        "MODEL.RPN.LOSS_WEIGHT": 2.0,
    }
    pairs = [f"{node}.TEST_SCORE_THRESH", "prior", f"{node}.BOX_REG_LOSS_WEIGHT", "0.25"]
    found = list_knobs(load_config(RETINANET_YAML, pairs, variant="sampling_free"))
    assert found.knobs == []
    assert values(found.test_settings)[f"{node}.TEST_SCORE_THRESH"] == "prior"
    assert values(found.constants) == {
        "model.guide.weight": 1.0,
        f"{node}.BOX_REG_LOSS_WEIGHT": 0.25,
    }


def test_the_warm_up_of_the_frozen_guide_is_a_constant():
    cfg = load_config(str(BCCD / "fcos_R_18_FPN.py"), ["model.guide=frozen"])
    found = values(list_knobs(cfg).constants)
    assert found["model.guide.WARMUP"] == 100 and found["model.guide.weight"] == 1.0


class HeadWithDrawnBias(RetinaNetHead):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        torch.nn.init.normal_(self.cls_score.bias)


def test_a_head_of_which_the_start_scores_are_drawn_has_no_fixed_prior():
    cfg = load_config(RETINANET)
    cfg.model.head._target_ = HeadWithDrawnBias
    found = values(list_knobs(cfg).knobs)
    assert found == {k: v for k, v in FOCAL.items() if "focal" in k} and len(found) == 2


def test_a_sampler_of_a_lazyconfig():
    cfg = config(BCCD / "retinanet_R_18_FPN.py")
    cfg.dataloader.train.sampler = L(RepeatFactorTrainingSampler)(
        repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
            dataset_dicts="${dataloader.train.dataset}", repeat_thresh=0.003
        )
    )
    assert values(list_knobs(cfg).knobs) == {
        "dataloader.train.sampler": "RepeatFactorTrainingSampler",
        "dataloader.train.sampler.repeat_factors.repeat_thresh": 0.003,
    }


def test_federated_loss():
    cfg = load_config(FASTER_YAML)
    if "USE_FED_LOSS" not in cfg.cfg.MODEL.ROI_BOX_HEAD:
        pytest.skip("newer than v0.6")
    node = "MODEL.ROI_BOX_HEAD"
    path = "LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
    pairs = [f"{node}.USE_SIGMOID_CE", "True", f"{node}.FED_LOSS_NUM_CLASSES", "40"]
    assert knobs(path, *pairs) == {**LVIS_YAML, **SAMPLERS_YAML, f"{node}.USE_SIGMOID_CE": True}
    assert knobs(path, *pairs, f"{node}.USE_FED_LOSS", "True") == {
        **LVIS_YAML,
        **SAMPLERS_YAML,
        f"{node}.USE_SIGMOID_CE": True,
        f"{node}.USE_FED_LOSS": True,
        f"{node}.FED_LOSS_NUM_CLASSES": 40,
        f"{node}.FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
    }


# Keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [RETINANET, MASK_FPN, RETINANET_YAML, FASTER_YAML, GIOU_YAML, BCCD / "paa_R_18_FPN_bce.py",
     BCCD / "fcos_R_18_FPN_focal.py", FOLDER / "demo" / "cascade_rcnn.py"],
)  # fmt: skip
def test_each_key_is_one_that_an_override_changes(path):
    overrides = []
    if str(path).endswith("paa_R_18_FPN_bce.py"):  # one with knobs, of which there is no file
        path = BCCD / "paa_R_18_FPN.py"
        overrides = ["model.prior=0.02", "model.guide=0.5", "model.box_loss_weight=0.9"]
    before = list_knobs(load_config(str(path), overrides))
    rows = values([*before.knobs, *before.test_settings])
    numbers = {k: v for k, v in rows.items() if not isinstance(v, bool)}
    changed = {k: v - 1 if isinstance(v, int) else 0.75 * v for k, v in numbers.items()}
    assert len(changed) >= 4
    # At once: each loading takes a moment. That rows are not mixed up is seen by their values.
    overrides += [f"{k}={v}" for k, v in changed.items()]
    found = list_knobs(load_config(str(path), overrides))
    assert values([*found.knobs, *found.test_settings]) == {**rows, **changed}


# What is not known -----------------------------------------------------------------------------


RPN_CONFIG = "COCO-Detection/rpn_R_50_FPN_1x.yaml"
ROTATED = [
    "MODEL.PROPOSAL_GENERATOR.NAME=RRPN",
    "MODEL.ANCHOR_GENERATOR.NAME=RotatedAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.ANGLES=[[0]]",
    "MODEL.RPN.BBOX_REG_WEIGHTS=(1.0,1.0,1.0,1.0,1.0)",
]


class OwnRetinaNet(RetinaNet):
    pass


class OwnPredictor(FastRCNNOutputLayers):
    pass


def test_a_class_that_is_not_known_is_named_with_those_that_are():
    cfg = load_config(RETINANET)
    cfg.model._target_ = OwnRetinaNet
    text = line(list_knobs, cfg)
    assert text.startswith("model: ") and "OwnRetinaNet" in text
    assert "SamplingFreeRetinaNet" in text and "GeneralizedRCNN" in text
    cfg = load_config(MASK_C4)
    cfg.model.roi_heads.box_predictor._target_ = OwnPredictor
    text = line(list_knobs, cfg)
    assert text.startswith("model.roi_heads.box_predictor: ") and "OwnPredictor" in text
    pairs = ["DATASETS.TEST", "('coco_2017_val',)"]
    text = line(list_knobs, load_config("Misc/semantic_R_50_FPN_1x.yaml", pairs))
    assert text.startswith("model: SemanticSegmentor")
    text = line(list_knobs, load_config(RPN_CONFIG, ROTATED))
    assert text.startswith("model.proposal_generator: ") and "RRPN" in text


def test_a_model_that_cannot_be_built_is_one_line():
    cfg = copy.deepcopy(load_config(RETINANET))
    cfg.model.head.num_convs = 4
    cfg.model.num_classes = "many"
    assert line(list_knobs, cfg).startswith("model: cannot be built (")


# The tool --------------------------------------------------------------------------------------


def test_the_tool_prints_three_blocks(monkeypatch, capsys):
    out = run(monkeypatch, capsys, "--config-file", BCCD / "retinanet_R_18_FPN.py")
    first, constants, tests = out.split("\n\n")
    assert first == "Imbalance knobs: none."
    assert "model.guide.weight" in constants and "model.test_score_thresh" in tests
    out = run(monkeypatch, capsys, "--config-file", BCCD / "retinanet_R_18_FPN_focal.py",
              "model.focal_loss_gamma=1.5")  # fmt: skip
    first, constants, tests = out.split("\n\n")
    assert first.startswith("Imbalance knobs: 3.\n")
    assert any(x.split()[:2] == ["model.focal_loss_gamma", "1.5"] for x in first.splitlines())
    assert constants == "Constants of the method and the detector: none."


def test_the_tool_writes_the_lists(monkeypatch, capsys, tmp_path):
    path = FOLDER / "demo" / "atss_focal.py"
    run(monkeypatch, capsys, "--config-file", path, "--json", tmp_path / "knobs.json")
    written = json.loads((tmp_path / "knobs.json").read_text())
    assert list(written) == ["knobs", "constants", "test_settings"]
    assert {x["key"]: x["value"] for x in written["knobs"]} == FOCAL
    assert all(set(x) == {"key", "value", "what"} for rows in written.values() for x in rows)


def test_the_tool_says_in_one_line_what_it_does_not_know(monkeypatch, capsys):
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, capsys, "--config-file", RPN_CONFIG, *ROTATED)
    assert error.value.code == 2
    assert "error: model.proposal_generator: RRPN" in capsys.readouterr().err
