"""Estimates of every detector: what they depend on, and objects that nothing takes for its own."""

import json
import math

import numpy as np
import pytest
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher

from helpers.assignments import NUMS, SIZES, grid, rpn_labels
from helpers.tiny import mapper_of, write_dicts
from helpers.tiny_detectors import stock_fcos, tiny_fcos, tiny_rcnn
from sampling_free.counting.count import count_anchors
from sampling_free.counting.estimate import dependencies, estimate_prior

# --- estimate -------------------------------------------------------------------------------------


def _generator(*sizes, strides=(8, 16, 32), offset=0.0):
    return DefaultAnchorGenerator(
        sizes=[list(sizes)] * 3, aspect_ratios=[[0.5, 1.0, 2.0]], strides=strides, offset=offset
    )


def _rcnn(**rpn):
    return tiny_rcnn(rpn=rpn)


CHANGES = {
    "FCOS' radius": (
        tiny_fcos,
        lambda: tiny_fcos(center_sampling_radius=2.0),
        {"center sampling radius"},
    ),
    "FCOS without a radius": (
        tiny_fcos,
        lambda: tiny_fcos(center_sampling_radius=math.inf),
        {"center sampling radius"},
    ),
    "FCOS' classes": (tiny_fcos, lambda: tiny_fcos(num_classes=4), {"number of classes"}),
    "border": (_rcnn, lambda: _rcnn(anchor_boundary_thresh=0), {"anchor boundary threshold"}),
    "thresholds": (
        _rcnn,
        lambda: _rcnn(anchor_matcher=Matcher([0.3, 0.6], [0, -1, 1], True)),
        {"matcher thresholds"},
    ),
    "labels": (
        _rcnn,
        lambda: _rcnn(anchor_matcher=Matcher([0.3, 0.7], [0, 0, 1], True)),
        {"matcher labels"},
    ),
    "low quality": (
        _rcnn,
        lambda: _rcnn(anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], False)),
        {"low quality matches"},
    ),
    "anchors": (
        lambda: _rcnn(anchor_generator=_generator(16, 32), head=_RPN_HEAD),
        lambda: _rcnn(anchor_generator=_generator(16, 33), head=_RPN_HEAD),
        {"anchors"},
    ),
    "strides": (
        lambda: _rcnn(anchor_generator=_generator(16, 32), head=_RPN_HEAD),
        lambda: _rcnn(anchor_generator=_generator(16, 32, strides=(4, 8, 16)), head=_RPN_HEAD),
        {"strides"},
    ),
    "offset": (
        lambda: _rcnn(anchor_generator=_generator(16, 32), head=_RPN_HEAD),
        lambda: _rcnn(anchor_generator=_generator(16, 32, offset=0.5), head=_RPN_HEAD),
        {"anchor offset"},
    ),
    "what the RPN samples": (
        lambda: tiny_rcnn(stock=True),
        lambda: tiny_rcnn(stock=True, rpn={"batch_size_per_image": 32}),
        set(),
    ),
    "the classes of an R-CNN": (_rcnn, lambda: tiny_rcnn(num_classes=7), set()),
    "weights": (tiny_fcos, lambda: tiny_fcos(seed=5, prior=0.3), set()),
}
_RPN_HEAD = tiny_rcnn().proposal_generator.rpn_head


@pytest.mark.parametrize("name", CHANGES)
def test_an_estimate_depends_on_what_changes_the_labels_and_on_nothing_else(name, tmp_path):
    before, after, changed = CHANGES[name]
    dicts = write_dicts(tmp_path, SIZES[:1], [2])
    a, b = (dependencies(build(), dicts, mapper_of(), "a set") for build in (before, after))
    assert a.keys() == b.keys()
    assert {key for key in a if a[key] != b[key]} == changed
    assert json.loads(json.dumps(b)) == b


@pytest.mark.parametrize("kind", ["faster", "c4"])
def test_the_prior_of_an_rpn_is_that_of_one_class_called_object(tmp_path, kind):
    dicts = write_dicts(tmp_path, SIZES, NUMS)
    estimate = estimate_prior(tiny_rcnn(kind), dicts, mapper_of(), progress=False)
    assert estimate.num_classes == 1
    assert estimate.per_class == {"object": estimate.num_foreground}
    strides, divisibility = ((16,), 1) if kind == "c4" else ((8, 16, 32), 32)
    labels = np.concatenate(
        [
            level
            for record in dicts
            for level in rpn_labels(
                np.array(
                    [
                        (x, y, x + w, y + h)
                        for x, y, w, h in (a["bbox"] for a in record["annotations"])
                    ]
                ).reshape(-1, 4),
                (record["height"], record["width"]),
                strides=strides,
                divisibility=divisibility,
            )
        ]
    )
    assert estimate.prior == pytest.approx(1 - labels[labels >= 0].mean(), rel=1e-12)


def test_the_prior_of_fcos_is_that_of_all_points_and_classes(tmp_path):
    dicts = write_dicts(tmp_path, SIZES, NUMS)
    estimate = estimate_prior(tiny_fcos(), dicts, mapper_of(), progress=False)
    assert estimate.num_classes == 3 and len(estimate.per_class) == 3
    points = sum(
        len(grid((image["height"], image["width"]), s, 32))
        for image in dicts
        for s in (8, 16, 32, 64, 128)
    )
    assert estimate.num_valid == points
    assert estimate.prior == pytest.approx(sum(estimate.per_class.values()) / points / 3)


def _fcos_claimed(boxes, size, radius=1.5):
    """Which objects get a point: that of the smallest area among those that claim it."""
    claimed = set()
    for level, stride in enumerate((8, 16, 32, 64, 128)):
        low = 0 if level == 0 else 4 * stride
        high = math.inf if level == 4 else 8 * stride
        for x, y in grid(size, stride, 32):
            claims = []
            for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
                inside = x0 < x < x1 and y0 < y < y1
                reach = max(x - x0, x1 - x, y - y0, y1 - y)
                off_center = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2))
                if inside and low < reach < high and off_center < radius * stride:
                    claims.append(((x1 - x0) * (y1 - y0), i))
            claimed |= {min(claims)[1]} if claims else set()
    return claimed


@pytest.mark.parametrize("build", [tiny_fcos, stock_fcos])
def test_objects_that_no_point_of_fcos_takes_are_those_of_a_brute_force(tmp_path, build):
    dicts = write_dicts(tmp_path, SIZES, [15, 12, 9, 0, 6], seed=3)
    num_unreached = 0
    for image in dicts:
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in image["annotations"])]
        boxes = np.array(boxes).reshape(-1, 4)
        num_unreached += len(boxes) - len(_fcos_claimed(boxes, (image["height"], image["width"])))
    counts = count_anchors(build(), dicts, mapper_of(), progress=False)
    assert (counts.num_objects, counts.num_unreached) == (42, num_unreached)
    assert 0 < num_unreached < 42
