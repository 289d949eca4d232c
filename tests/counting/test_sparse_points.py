"""The sparse matcher of points against Detectron2's own FCOS on every point."""

import math

import numpy as np
import pytest
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from helpers.many_images import (
    NUM_CLASSES,
    check_every_anchor,
    coco_tiny,
    images_of,
    made_up_images,
    sorted_rows,
)
from helpers.tiny import STRIDES
from helpers.tiny_detectors import stock_fcos
from sampling_free.counting.sparse import parts
from sampling_free.counting.sparse.grid import Direction
from sampling_free.counting.sparse.points import PointMatcher

RADII = [0.3, 1.5, 4.0, math.inf]


@pytest.fixture(scope="module")
def label_anchors():
    """``FCOS.label_anchors`` of a radius."""
    models = {}

    def of(radius):
        if radius not in models:
            models[radius] = stock_fcos(center_sampling_radius=radius)
            models[radius].num_classes = NUM_CLASSES
        return models[radius].label_anchors

    return of


def _points(strides, offset):
    return DefaultAnchorGenerator(
        sizes=[[k] for k in strides], aspect_ratios=[1.0], strides=strides, offset=offset
    )


@pytest.mark.parametrize(
    ("radius", "strides", "offset"),
    # A third of the product, in which every radius meets all strides.
    [
        (radius, strides, [0.0, 0.5, 0.3][(i + j) % 3])
        for i, radius in enumerate(RADII)
        for j, strides in enumerate([STRIDES, [4, 8], [16], [6, 7, 9, 50]])
    ],
)
def test_every_point_has_the_object_of_brute_force(label_anchors, radius, strides, offset):
    seed = [int(10 * x) for x in (offset, len(strides), min(radius, 9))]
    images = made_up_images(seed, strides, 60)
    found = PointMatcher(tuple(strides), offset, radius)(images)
    assert (np.diff(images.starts) == 0).any() and len(np.unique(images.shapes)) > 2
    generator = _points(strides, offset)
    assert check_every_anchor(found, images, generator, label_anchors(radius)) > 20


@pytest.mark.parametrize("radius", [1.5, math.inf])
def test_so_it_is_on_real_images_at_full_size(label_anchors, radius):
    images = coco_tiny(STRIDES)
    found = PointMatcher(tuple(STRIDES), 0.5, radius)(images)
    generator = stock_fcos().anchor_generator
    num = check_every_anchor(found, images, generator, label_anchors(radius))
    assert num > 5 * len(images.boxes)
    assert set(found.level.tolist()) == set(range(5))


def test_so_it_is_in_crowds(label_anchors):
    radius = 1.5
    images = made_up_images(1, STRIDES, 5, most=400)
    assert len(images.boxes) > 400
    found = PointMatcher(tuple(STRIDES), 0.5, radius)(images)
    check_every_anchor(found, images, _points(STRIDES, 0.5), label_anchors(radius))


def test_of_equal_areas_the_first_object_has_the_point():
    boxes = np.array([[8, 8, 40, 40], [8, 8, 40, 40], [9, 8, 41, 40], [8, 7, 40, 39]])
    images = images_of([boxes, boxes[::-1]], [(64, 64)] * 2, [8])
    found = PointMatcher((8,), 0.5, math.inf)(images)
    assert [(i, g) for i, _, _, g in sorted_rows(found)] == [(0, 0)] * 16 + [(1, 4)] * 16


def test_areas_that_detectron2_rounds_to_the_same_are_equal(label_anchors):
    # 1e8 - area is a multiple of 8 in float32.
    boxes = [[8, 8, 40, 40.1], [8, 8, 40, 40]]
    images = images_of([boxes, boxes[::-1]], [(64, 64)] * 2, [8])
    found = PointMatcher((8,), 0.5, math.inf)(images)
    check_every_anchor(found, images, _points([8], 0.5), label_anchors(math.inf))
    assert {(i, g) for i, _, _, g in sorted_rows(found)} == {(0, 0), (1, 2)}


def test_an_object_of_more_than_1e8_pixels_has_no_point(label_anchors):
    boxes = [[0, 0, 10000, 10008], [300, 200, 10100, 10200], [0, 0, 10000, 10000]]
    images = images_of([boxes], [(10240, 10240)], [256, 512])
    found = PointMatcher((256, 512), 0.5, math.inf)(images)
    check_every_anchor(found, images, _points([256, 512], 0.5), label_anchors(math.inf))
    assert set(found.object.tolist()) == {1}


@pytest.mark.parametrize("num_images", [0, 3])
def test_without_objects_there_is_no_foreground(num_images):
    images = images_of([[]] * max(num_images, 1), [(64, 96)] * max(num_images, 1), STRIDES)
    images = images._replace(
        shapes=images.shapes[:num_images], starts=images.starts[: num_images + 1]
    )
    found = PointMatcher(tuple(STRIDES), 0.5, 1.5)(images)
    assert [x.dtype for x in found] == [np.int64] * 4 and [len(x) for x in found] == [0] * 4


@pytest.mark.parametrize("most_objects, most_anchors", [(7, 2**22), (10**9, 1)])
def test_the_parts_do_not_matter(monkeypatch, most_objects, most_anchors):
    images = made_up_images(2, STRIDES, 50)
    matcher = PointMatcher(tuple(STRIDES), 0.5, 1.5)
    at_once = sorted_rows(matcher(images))
    monkeypatch.setattr(parts, "MOST_OBJECTS", most_objects)
    monkeypatch.setattr(parts, "MOST_ANCHORS", most_anchors)
    assert sorted_rows(matcher(images)) == at_once and len(at_once) > 50


def test_only_points_near_an_object_are_looked_at(monkeypatch):
    looked_at = []
    anchors = Direction.anchors

    def spy(*args):
        result = anchors(*args)
        looked_at.append(result[0].size)
        return result

    monkeypatch.setattr(Direction, "anchors", spy)
    images = images_of([[[100, 100, 160, 190], [3000, 2500, 3300, 2600]]], [(4096, 4096)], STRIDES)
    found = PointMatcher(tuple(STRIDES), 0.5, 1.5)(images)
    assert images.shapes.prod(axis=2).sum() > 300_000
    assert 9 <= len(found.anchor) and 0 < sum(looked_at) < 150
