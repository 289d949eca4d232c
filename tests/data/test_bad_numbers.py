"""Settings of the dense detectors that are no such numbers: one line that names the key."""

import pytest

from helpers.tiny import tiny_retinanet
from helpers.tiny_detectors import tiny_fcos
from sampling_free import ATSS, PAA, BadInput, SamplingFreeATSS, SamplingFreePAA, make_guide
from sampling_free.utils.errors import require_number

OURS = [SamplingFreeATSS, SamplingFreePAA]


def line(function, *args, **kwargs):
    with pytest.raises(BadInput) as error:
        function(*args, **kwargs)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize("cls", [ATSS, SamplingFreePAA])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("anchor_size", 0),
        ("anchor_size", "8"),
        ("box_loss_weight", -1.0),
        ("box_loss_weight", None),
        ("topk", True),
        ("center_sampling_radius", 1.5),
    ],
)
def test_of_atss_and_paa(cls, key, value):
    assert f"model.{key}" in line(tiny_fcos, cls, **{key: value})


@pytest.mark.parametrize("cls", [PAA, SamplingFreePAA])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("iou_threshold", 0),
        ("iou_threshold", 1.5),
        ("iou_loss_weight", -0.5),
        ("score_voting", "maybe"),
    ],
)
def test_of_paa(cls, key, value):
    assert f"model.{key}={value!r}" in line(tiny_fcos, cls, **{key: value})


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), True])
def test_a_threshold_of_scores_is_in_0_to_1(value):
    for make in (tiny_retinanet, tiny_fcos, *(lambda c=c, **k: tiny_fcos(c, **k) for c in OURS)):
        assert "model.test_score_thresh" in line(make, prior=0.01, test_score_thresh=value)


def test_a_truth_value_is_no_guide():
    assert "model.guide=True" in line(make_guide, True)


def test_the_ends_of_an_interval_belong_to_it():
    require_number("key", 0, 0, 1)
    require_number("key", 1.0, 0, 1)
    require_number("key", 10**9, 0, float("inf"))
    assert line(require_number, "a.b", 2, 0, 1) == "a.b=2: give a number in [0, 1]"
    assert line(require_number, "a.b", -1, 0, float("inf")) == "a.b=-1: give a number from 0 up"
