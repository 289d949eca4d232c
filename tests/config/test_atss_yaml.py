"""ATSS and PAA in YAML configs: every key of theirs reaches the model, and nothing else."""

import pytest
import torch
from detectron2.modeling import build_model

import sampling_free
from helpers.tiny import batch, train_step
from helpers.tiny_points import points_cfg
from sampling_free import PAA

NAMES = ["ATSS", "PAA", "SamplingFreeATSS", "SamplingFreePAA"]


def _settings(model):
    """What can be set, as it arrived in the model."""
    generator, head = model.anchor_generator, model.head
    found = {
        "norm": sorted({type(m).__name__ for m in head.modules() if "Norm" in type(m).__name__}),
        "anchors": [x[0].tolist() for x in generator.cell_anchors],
        "convolutions": sum(isinstance(m, torch.nn.Conv2d) for m in head.modules()),
        "classes": (model.num_classes, head.cls_score.out_channels),
    }
    for name in (
        "topk",
        "box_loss_weight",
        "quality_loss_weight",
        "test_score_thresh",
        "test_nms_thresh",
        "test_topk_candidates",
        "max_detections_per_image",
        "focal_loss_alpha",
        "focal_loss_gamma",
        "head_in_features",
        "prior",
        "score_voting",
    ):
        found[name] = getattr(model, name, None)
    found["iou_threshold"] = model.matcher.thresholds[1] if isinstance(model, PAA) else None
    found["guide"] = model.guide.key if hasattr(model, "guide") else None
    return found


@pytest.mark.parametrize("name", NAMES)
def test_it_is_built_and_trained_by_its_name(name):
    cls = getattr(sampling_free, name)
    prior = [] if name in ("ATSS", "PAA") else ["MODEL.SAMPLING_FREE.PRIOR", 0.01]
    model = build_model(points_cfg(name, *prior))
    assert type(model) is cls
    losses, latest, _ = train_step(model, batch(3, 2))
    assert len(losses) == 3 and all(x.isfinite() for x in losses.values())
    assert latest["num_pos_anchors"] > 0
    with torch.no_grad():
        assert len(model.eval()(batch(1))) == 1


def defaults(name):
    is_paa, is_ours = name.endswith("PAA"), name.startswith("Sampling")
    return {
        "norm": ["GroupNorm"],
        "anchors": [[-4.0 * s, -4.0 * s, 4.0 * s, 4.0 * s] for s in (8, 16, 32, 64, 128)],
        "convolutions": 4 + 4 + 3,
        "classes": (3, 3),
        "topk": 9,
        "box_loss_weight": 1.3 if is_paa else 2.0,
        "quality_loss_weight": 0.5 if is_paa else 1.0,
        "test_score_thresh": 0.001 if is_ours else 0.05,
        "test_nms_thresh": 0.6,
        "test_topk_candidates": 1000,
        "max_detections_per_image": 100,
        "focal_loss_alpha": 0.25,
        "focal_loss_gamma": 2.0,
        "head_in_features": ["p3", "p4", "p5", "p6", "p7"],
        "prior": "auto" if is_ours else None,
        "score_voting": True if is_paa else None,
        "iou_threshold": 0.1 if is_paa else None,
        "guide": "gradient" if is_ours else None,
    }


# Key -> value, what it sets, to what. No two values are alike.
OWN = {  # of MODEL.SAMPLING_FREE.ATSS and .PAA
    "NORM": ("", "norm", []),
    "ANCHOR_SIZE": (5.0, "anchors", [[-2.5 * s] * 2 + [2.5 * s] * 2 for s in (8, 16, 32, 64, 128)]),
    "TOPK": (4, "topk", 4),
    "BOX_LOSS_WEIGHT": (3.5, "box_loss_weight", 3.5),
    "SCORE_THRESH_TEST": (0.07, "test_score_thresh", 0.07),
    "NMS_THRESH_TEST": (0.55, "test_nms_thresh", 0.55),
}
OF_PAA = {
    "IOU_THRESHOLD": (0.2, "iou_threshold", 0.2),
    "IOU_LOSS_WEIGHT": (0.7, "quality_loss_weight", 0.7),
    "SCORE_VOTING": (False, "score_voting", False),
}
SHARED = {
    "MODEL.RETINANET.NUM_CLASSES": (5, "classes", (5, 5)),
    "MODEL.RETINANET.NUM_CONVS": (2, "convolutions", 2 + 2 + 3),
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": (77, "test_topk_candidates", 77),
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": (0.4, "focal_loss_alpha", 0.4),
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": (1.5, "focal_loss_gamma", 1.5),
    "TEST.DETECTIONS_PER_IMAGE": (33, "max_detections_per_image", 33),
}
OURS = {
    "MODEL.SAMPLING_FREE.PRIOR": (0.02, "prior", 0.02),
    "MODEL.SAMPLING_FREE.GUIDE": ("frozen", "guide", "frozen"),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_are_those_of_the_class_and_every_key_reaches_the_model(name):
    assert _settings(build_model(points_cfg(name))) == defaults(name)
    kind = "PAA" if name.endswith("PAA") else "ATSS"
    own = {**OWN, **(OF_PAA if kind == "PAA" else {})}
    assert set(points_cfg(name).MODEL.SAMPLING_FREE[kind]) == set(own)
    keys = {f"MODEL.SAMPLING_FREE.{kind}.{k}": v for k, v in own.items()} | SHARED
    keys |= OURS if name.startswith("Sampling") else {}
    pairs = [x for key, (value, *_) in keys.items() for x in (key, value)]
    expected = {what: value for _, what, value in keys.values()}
    assert _settings(build_model(points_cfg(name, *pairs))) == {**defaults(name), **expected}


def test_a_threshold_from_the_prior_wins_over_the_detectors_number():
    pairs = ["MODEL.SAMPLING_FREE.TEST_SCORE_THRESH", "prior", "MODEL.SAMPLING_FREE.PRIOR", 0.01]
    model = build_model(points_cfg("SamplingFreePAA", *pairs))
    assert model.test_score_thresh == pytest.approx(0.03)


@pytest.mark.parametrize("name", ["ATSS", "SamplingFreePAA"])
def test_the_head_starts_from_retinanets_prior_until_one_is_measured(name):
    model = build_model(points_cfg(name, "MODEL.RETINANET.PRIOR_PROB", 0.2))
    assert model.head.cls_score.bias.sigmoid().tolist() == pytest.approx([0.2] * 3)
