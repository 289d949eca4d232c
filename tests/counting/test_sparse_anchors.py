"""The sparse IoU matcher against Detectron2's own on every anchor, anchor by anchor."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.datasets import load_coco_json
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou

from sampling_free.counting.batched_views import apply, read_records, recipes
from sampling_free.counting.sparse import anchors, parts
from sampling_free.counting.sparse.anchors import IoUMatcher
from sampling_free.counting.sparse.images import Images, Labeled

RETINANET = {
    "sizes": [[x * 2 ** (k / 3) for k in range(3)] for x in (8, 16, 32, 64, 128)],
    "strides": [4, 8, 16, 32, 64],
}
RPN = {"sizes": [[8], [16], [32], [64], [128]], "strides": [2, 4, 8, 16, 32]}
ONE_LEVEL = {"sizes": [[32, 64]], "strides": [16]}
GAPS = {"sizes": [[3]], "strides": [16]}  # most places are under no anchor
MATCHERS = {
    "RetinaNet": ((0.4, 0.5), (0, -1, 1), True),
    "RPN": ((0.3, 0.7), (0, -1, 1), True),
    "no low quality": ((0.4, 0.5), (0, -1, 1), False),
    "no ignored": ((0.5,), (0, 1), True),
    "an empty band": ((0.5, 0.5), (0, -1, 1), True),
    "four labels": ((0.1, 0.3, 0.6), (0, 0, -1, 1), True),
    "foreground between": ((0.2, 0.4), (0, 1, -1), True),
}


def grid_of(layout, offset=0.0):
    return DefaultAnchorGenerator(aspect_ratios=[[0.5, 1.0, 2.0]], offset=offset, **layout)


def sparse(generator, thresholds, labels, low_quality):
    cells = tuple(x.numpy() for x in generator.cell_anchors)
    strides = tuple(generator.strides)
    return IoUMatcher(cells, strides, generator.offset, thresholds, labels, low_quality)


def boxes_in(rng, size, num):
    """(num, 4) float32: tiny, huge, thin, alike, at the border, on the anchors' grid."""
    height, width = size
    sides = np.exp(rng.uniform(np.log(0.3), np.log(1.2 * max(size)), (num, 2)))
    sides = np.minimum(sides, (width, height))
    thin = rng.random(num) < 0.1
    sides[thin, 0] = rng.uniform(1e-4, 1, thin.sum())
    corner = rng.random((num, 2)) * ((width, height) - sides)
    corner[rng.random(num) < 0.1] = 0
    at_end = rng.random(num) < 0.1
    corner[at_end] = (np.array([width, height]) - sides)[at_end]
    boxes = np.hstack([corner, corner + sides])
    whole = rng.random(num) < 0.3
    boxes[whole] = 4 * np.round(boxes[whole] / 4)
    boxes = boxes.astype(np.float32)
    for i in range(1, num):
        if rng.random() < 0.15:
            boxes[i] = boxes[rng.integers(i)]
    return boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) > 1e-5]


def made_up(rng, generator, num_images, most=12, longest=160):
    """A batch of images of many sizes, some without an object, as ``Images``."""
    sizes = rng.integers(1, longest, (num_images, 2))
    nums = rng.integers(0, most, num_images) * (rng.random(num_images) < 0.9)
    boxes = [boxes_in(rng, size, num) for size, num in zip(sizes, nums)]
    strides = np.array(generator.strides)
    return Images(
        np.concatenate(boxes),
        np.cumsum([0, *map(len, boxes)]),
        -(-sizes[:, None] // strides[:, None]),
    )


def features(shapes):
    return [torch.empty(1, 1, *map(int, shape)) for shape in shapes]


def check(generator, images, settings, found=None):
    """Labels and matched objects are Detectron2's; returns how many are -1, 0 and 1."""
    thresholds, labels, low_quality = settings
    found = found or sparse(generator, *settings)(images)
    matcher = Matcher(list(thresholds), list(labels), low_quality)
    seen = np.zeros(3, int)
    for i, shapes in enumerate(images.shapes):
        begin, end = images.starts[i : i + 2]
        levels = generator(features(shapes))
        anchors = Boxes.cat(levels)
        gt = Boxes(torch.from_numpy(images.boxes[begin:end]))
        objects, expected = matcher(pairwise_iou(gt, anchors))
        ours = np.zeros(len(anchors), int)
        matched = np.full(len(anchors), -1)
        of_image = found.image == i
        anchor = found.anchor[of_image]
        assert len(set(anchor.tolist())) == len(anchor)
        matched[anchor] = found.object[of_image]
        ours[anchor] = np.where(found.object[of_image] >= 0, 1, -1)
        assert np.array_equal(ours, expected.numpy())
        foreground = ours == 1
        assert np.array_equal(matched[foreground], objects.numpy()[foreground] + begin)
        level = np.repeat(np.arange(len(levels)), [len(x) for x in levels])
        assert np.array_equal(found.level[of_image], level[anchor])
        seen += [(ours == x).sum() for x in (-1, 0, 1)]
    return seen


@pytest.mark.parametrize("name", MATCHERS)
@pytest.mark.parametrize(("layout", "offset"), [(RETINANET, 0.5), (RPN, 0.0)])
def test_labels_and_objects_are_those_of_brute_force(layout, name, offset):
    rng = np.random.default_rng(0)
    generator = grid_of(layout, offset)
    ignored, background, foreground = check(generator, made_up(rng, generator, 150), MATCHERS[name])
    assert background > foreground > 0
    assert (ignored > 0) == (-1 in MATCHERS[name][1] and name != "an empty band")


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("layout", [ONE_LEVEL, GAPS], ids=["one level", "gaps"])
def test_so_they_are_where_objects_overlap_few_anchors_or_none(layout, low_quality):
    rng = np.random.default_rng(1)
    generator = grid_of(layout, 0.5)
    images = made_up(rng, generator, 200, longest=60)
    _, background, foreground = check(generator, images, ((0.4, 0.5), (0, -1, 1), low_quality))
    # Detectron2 gives every anchor to an object that overlaps none, which most are here.
    assert (foreground > background) == (layout is GAPS and low_quality)


def test_so_they_are_in_crowds_far_from_the_origin():
    rng = np.random.default_rng(0)
    generator = grid_of({"sizes": [[32], [64], [128]], "strides": [8, 16, 32]})
    images = made_up(rng, generator, 3, most=150, longest=1500)
    shift = np.float32(rng.uniform(0, 100))  # some objects reach beyond the grid
    check(generator, images._replace(boxes=images.boxes + shift), MATCHERS["RPN"])


def test_no_image_depends_on_those_beside_it(monkeypatch):
    rng = np.random.default_rng(3)
    generator = grid_of(RETINANET)
    images = made_up(rng, generator, 40)
    matcher = sparse(generator, *MATCHERS["RetinaNet"])
    whole = sorted(zip(*matcher(images)))
    assert len(whole) > 500
    for name, value in (("MOST_OBJECTS", 9), ("MOST_ANCHORS", 1)):
        monkeypatch.setattr(parts, name, value)
        assert sorted(zip(*matcher(images))) == whole


def test_without_an_object_everything_is_background():
    generator = grid_of(RETINANET)
    images = Images(np.zeros((0, 4), np.float32), np.zeros(4, int), np.full((3, 5, 2), 7))
    found = sparse(generator, *MATCHERS["RetinaNet"])(images)
    assert isinstance(found, Labeled) and all(len(x) == 0 for x in found)


def test_of_equal_overlaps_the_first_object_has_the_anchor():
    generator = grid_of(ONE_LEVEL)
    box = [16, 16, 48, 48]
    images = Images(np.array([box, box, box], np.float32), np.array([0, 3]), np.array([[[4, 4]]]))
    found = sparse(generator, *MATCHERS["RetinaNet"])(images)
    assert set(found.object[found.object >= 0].tolist()) == {0}


def test_only_few_anchors_are_compared(monkeypatch):
    """On an image of COCO's size: not one in a hundred of those that are there."""
    num_compared = []
    iou = anchors.iou

    def spy(*args):
        overlaps = iou(*args)
        num_compared.append(overlaps.size)
        return overlaps

    monkeypatch.setattr(anchors, "iou", spy)
    generator = grid_of({"sizes": [[32], [64], [128], [256], [512]], "strides": [4, 8, 16, 32, 64]})
    shapes = -(-np.array([800, 1344]) // np.array(generator.strides)[:, None])
    images = Images(np.array([[100, 100, 180, 160]], np.float32), np.array([0, 1]), shapes[None])
    check(generator, images, MATCHERS["RPN"])
    num_anchors = 3 * shapes.prod(axis=1).sum()
    assert 0 < sum(num_compared) < num_anchors / 100


# --- real annotations -----------------------------------------------------------------------------

SHARED = Path(__file__).parents[3] / "shared" / "data"
COCO = Path(os.environ.get("DETECTRON2_DATASETS", SHARED)) / "coco_tiny"
DETECTRON2 = {  # the layouts of its configs
    "RetinaNet": (
        {
            "sizes": [[x * 2 ** (k / 3) for k in range(3)] for x in (32, 64, 128, 256, 512)],
            "strides": [8, 16, 32, 64, 128],
        },
        range(0, 80, 2),
    ),
    "RPN": (
        {"sizes": [[32], [64], [128], [256], [512]], "strides": [4, 8, 16, 32, 64]},
        range(1, 80, 2),
    ),
}


@pytest.mark.skipif(not COCO.is_dir(), reason=f"no {COCO}")
@pytest.mark.parametrize("name", DETECTRON2)
def test_so_they_are_on_photographs_at_800_pixels(name):
    layout, chosen = DETECTRON2[name]
    generator = grid_of(layout)
    dicts = load_coco_json(str(COCO / "annotations" / "instances_train2017.json"), str(COCO))
    records = read_records([dicts[i] for i in chosen])
    ((steps, _),) = recipes([ResizeShortestEdge(800, 1333)])
    sizes, boxes, _, starts = apply(steps, records)
    padded = -(-sizes // 32) * 32
    shapes = -(-padded[:, None] // np.array(generator.strides)[:, None])
    ignored, _, foreground = check(generator, Images(boxes, starts, shapes), MATCHERS[name])
    assert ignored > foreground > len(boxes)
