import json
import math

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, Instances
from torch import nn

from helpers.assignments import DETECTORS, NUMS, SIZES, grid, rpn_labels
from helpers.tiny import mapper_of, random_boxes, write_dicts
from helpers.tiny_detectors import PIXELS, TinyC4, stock_fcos, tiny_fcos, tiny_rcnn
from sampling_free.counting.assignment import assignment_of
from sampling_free.counting.count import count_anchors
from sampling_free.utils.errors import BadInput

# --- brute force ----------------------------------------------------------------------------------


def _fcos_labels(boxes, classes, size, *, radius, num_classes):
    """Labels of the points of each level: among the objects that claim one the smallest has it."""
    strides = (8, 16, 32, 64, 128)
    levels = []
    for level, stride in enumerate(strides):
        low = 0 if level == 0 else 4 * stride
        high = math.inf if level == 4 else 8 * stride
        labels = []
        for x, y in grid(size, stride, 32):
            claims = []
            for (x0, y0, x1, y1), c in zip(boxes.tolist(), classes):
                inside = x0 < x < x1 and y0 < y < y1
                reach = max(x - x0, x1 - x, y - y0, y1 - y)
                off_center = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2))
                if inside and low < reach < high and off_center < radius * stride:
                    claims.append(((x1 - x0) * (y1 - y0), c))
            labels.append(min(claims)[1] if claims else num_classes)
        levels.append(np.array(labels))
    return levels


def _brute_force(label, num_classes, dicts, recipes):
    """(valid (L,), foreground (L,), per class (K,)), the mean over deterministic recipes.

    Args:
        label (callable): of boxes (M, 4), classes (M,) and (height, width), gives L arrays.
    """
    valid, foreground, per_class = 0, 0, np.zeros(num_classes)
    for recipe in recipes:
        mapper = mapper_of(*recipe)
        for record in dicts:
            mapped = mapper(record)
            instances = mapped["instances"]
            levels = label(
                instances.gt_boxes.tensor.numpy(),
                instances.gt_classes.tolist(),
                tuple(mapped["image"].shape[1:]),
            )
            is_foreground = [(x >= 0) & (x < num_classes) for x in levels]
            valid = valid + np.array([(x >= 0).sum() for x in levels])
            foreground = foreground + np.array([x.sum() for x in is_foreground])
            for x in np.concatenate(levels)[np.concatenate(is_foreground)]:
                per_class[x] += 1
    return valid / len(recipes), foreground / len(recipes), per_class / len(recipes)


def _check(model, dicts, label, num_classes, augmentations=(), recipes=((),)):
    counts = count_anchors(model, dicts, mapper_of(*augmentations), progress=False)
    valid, foreground, per_class = _brute_force(label, num_classes, dicts, recipes)
    np.testing.assert_allclose(counts.valid, valid, rtol=1e-12)
    np.testing.assert_allclose(counts.foreground, foreground, rtol=1e-12)
    np.testing.assert_allclose(counts.foreground_per_class, per_class, rtol=1e-12)
    assert 0 < foreground.sum() < valid.sum()
    return counts


VIEWS = T.ResizeShortestEdge((32, 57, 80), 110, "choice"), T.RandomFlip(0.5)
RECIPES = [
    [T.ResizeShortestEdge([length] * 2, 110), T.RandomFlip(probability)]
    for length in (32, 57, 80)
    for probability in (0.0, 1.0)
]


def _random_dicts(folder, seed):
    rng = np.random.default_rng(seed)
    sizes = [tuple(s) for s in rng.integers(30, 140, (3, 2)).tolist()]
    return write_dicts(folder, sizes, [5, 0, 8], seed=seed)


class TestFCOSCounts:
    def _label(self, radius=1.5, num_classes=3):
        return lambda boxes, classes, size: _fcos_labels(
            boxes, classes, size, radius=radius, num_classes=num_classes
        )

    @pytest.mark.parametrize(
        ("build", "radius", "num_classes"),
        [(tiny_fcos, 1.5, 3), (tiny_fcos, 0.5, 1), (stock_fcos, math.inf, 3)],
    )
    def test_they_are_those_of_a_brute_force(self, tmp_path, build, radius, num_classes):
        model = build(num_classes=num_classes, center_sampling_radius=radius)
        dicts = write_dicts(tmp_path, SIZES, NUMS, num_classes, crowd=(0, 1))
        counts = _check(model, dicts, self._label(radius, num_classes), num_classes)
        assert (counts.num_images, counts.num_empty_images, counts.num_passes) == (5, 2, 1)
        assert counts.strides == [8, 16, 32, 64, 128]

    @pytest.mark.parametrize("seed", range(2))
    def test_so_they_are_over_flips_and_scales(self, tmp_path, seed):
        _check(tiny_fcos(), _random_dicts(tmp_path, seed), self._label(), 3, VIEWS, RECIPES)

    def test_large_objects_are_on_their_own_levels_and_the_smallest_wins(self, tmp_path):
        # Nested around one center: each scale range has one, the smallest of all two in its own.
        model = tiny_fcos(center_sampling_radius=math.inf)
        (record,) = write_dicts(tmp_path, [(640, 896)], [6])
        for k, (annotation, half) in enumerate(
            zip(record["annotations"], (20, 33, 75, 130, 200, 310))
        ):
            bbox = [448.5 - 1.3 * half, 320.5 - half, 2.6 * half, 2 * half]
            annotation.update(bbox=bbox, category_id=k % 3)
        counts = _check(model, [record], self._label(math.inf), 3)
        assert (counts.foreground > 0).sum() >= 4
        assert (counts.foreground_per_class > 0).all()


class TestRPNCounts:
    def _label(self, strides=(8, 16, 32), divisibility=32, **kwargs):
        return lambda boxes, classes, size: rpn_labels(
            boxes, size, strides=strides, divisibility=divisibility, **kwargs
        )

    @pytest.mark.parametrize(
        ("stock", "low", "high", "low_quality"),
        [
            (False, 0.3, 0.7, True),
            (True, 0.3, 0.7, False),
            (False, 0.4, 0.5, False),
            (True, 0.5, 0.5, True),
        ],
    )
    def test_they_are_those_of_a_brute_force(self, tmp_path, stock, low, high, low_quality):
        matcher = Matcher([low, high], [0, -1, 1], low_quality)
        model = tiny_rcnn(stock=stock, rpn={"anchor_matcher": matcher})
        dicts = write_dicts(tmp_path, SIZES, NUMS, crowd=(0, 1))
        label = self._label(low=low, high=high, low_quality=low_quality)
        counts = _check(model, dicts, label, 1)
        assert (counts.num_images, counts.num_empty_images, counts.num_passes) == (5, 2, 1)
        assert counts.strides == [8, 16, 32]

    @pytest.mark.parametrize(("stock", "border"), [(False, 0), (True, 12.5)])
    def test_anchors_beyond_the_border_of_the_unpadded_image_do_not_count(
        self, tmp_path, stock, border
    ):
        model = tiny_rcnn(stock=stock, rpn={"anchor_boundary_thresh": border})
        dicts = write_dicts(tmp_path, SIZES, NUMS)
        counts = _check(model, dicts, self._label(border=border), 1)
        everywhere = count_anchors(tiny_rcnn(), dicts, mapper_of(), progress=False)
        assert counts.valid.sum() < everywhere.valid.sum()

    @pytest.mark.parametrize(("seed", "border"), [(0, -1), (1, 8.0)])
    def test_so_they_are_over_flips_and_scales(self, tmp_path, seed, border):
        model = tiny_rcnn(rpn={"anchor_boundary_thresh": border})
        label = self._label(border=border)
        _check(model, _random_dicts(tmp_path, seed), label, 1, VIEWS, RECIPES)

    @pytest.mark.parametrize("stock", [False, True])
    def test_so_they_are_on_the_one_unpadded_level_of_a_c4(self, tmp_path, stock):
        model = tiny_rcnn("c4", stock=stock)
        dicts = write_dicts(tmp_path, SIZES, NUMS)
        counts = _check(model, dicts, self._label((16,), 1), 1)
        assert counts.strides == [16]


# --- the interface --------------------------------------------------------------------------------


def _instances(size=(64, 96), num=5, seed=0):
    rng = np.random.default_rng(seed)
    boxes = torch.from_numpy(random_boxes(rng, size, num).astype(np.float32))
    classes = torch.from_numpy(rng.integers(3, size=num))
    return Instances(size, gt_boxes=Boxes(boxes), gt_classes=classes)


def _levels(assignment, size=(64, 96)):
    device = assignment.device
    return assignment.anchor_generator(
        [
            torch.empty(1, 1, -(-size[0] // s), -(-size[1] // s), device=device)
            for s in assignment.strides
        ]
    )


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_gives_a_label_to_every_anchor(name):
    model = DETECTORS[name]()
    assignment = assignment_of(model)
    is_rcnn = isinstance(model, GeneralizedRCNN)
    assert assignment.num_classes == (1 if is_rcnn else 3)
    assert assignment.class_names == (["object"] if is_rcnn else None)
    if "C4" in name:
        assert assignment.strides == [16]
    elif is_rcnn:
        assert assignment.strides[:3] == [8, 16, 32]
    else:
        assert assignment.strides == [8, 16, 32, 64, 128]
    levels = _levels(assignment)
    labels = assignment.labels_and_boxes(levels, _instances())[0]
    assert labels.shape == (sum(map(len, levels)),) and not labels.requires_grad
    found = set(labels.tolist())
    assert {0, assignment.num_classes} <= found <= set(range(-1, assignment.num_classes + 1))
    assert (-1 in found) == (not isinstance(model, FCOS))
    empty = assignment.labels_and_boxes(levels, _instances(num=0))[0]
    assert (empty == assignment.num_classes).all()
    json.dumps(assignment.settings())


@pytest.mark.parametrize("kind", ["RetinaNet", "FCOS", "Faster R-CNN", "C4"])
def test_stock_has_the_same_labels(kind):
    ours, stock = (assignment_of(DETECTORS[x]()) for x in (kind, f"stock {kind}"))
    for seed in range(5):
        instances = _instances(seed=seed)
        a, b = (x.labels_and_boxes(_levels(x), instances)[0] for x in (ours, stock))
        assert torch.equal(a, b)
    assert ours.settings() == stock.settings()


def test_stock_still_samples_after_its_anchors_were_counted(tmp_path):
    model = tiny_rcnn(stock=True)
    rpn = model.proposal_generator
    before = dict(vars(rpn))
    counts = count_anchors(model, write_dicts(tmp_path, SIZES, NUMS), mapper_of(), progress=False)
    assert counts.valid.sum() > 100 * len(SIZES)
    assert dict(vars(rpn)) == before and "_subsample_labels" not in vars(rpn)
    levels = _levels(assignment_of(model))
    labels, _ = rpn.label_and_sample_anchors(levels, [_instances()])
    assert (labels[0] >= 0).sum() == 16 and 0 < (labels[0] == 1).sum() <= 8
    everything = torch.cat([torch.ones(100), torch.zeros(200)]).to(torch.int8)
    sampled = rpn._subsample_labels(everything)
    assert [(sampled == x).sum().item() for x in (1, 0)] == [8, 8]


def test_labels_do_not_depend_on_random_numbers_and_draw_none():
    assignment = assignment_of(tiny_rcnn(stock=True))
    state = torch.get_rng_state()
    labels = [assignment.labels_and_boxes(_levels(assignment), _instances())[0] for _ in range(2)]
    assert torch.equal(*labels) and torch.equal(torch.get_rng_state(), state)


class NoDetector(nn.Module):
    pass


def _rcnn_without_rpn():
    model = tiny_rcnn("c4")
    return GeneralizedRCNN(
        backbone=TinyC4(), proposal_generator=None, roi_heads=model.roi_heads, **PIXELS
    )


@pytest.mark.parametrize(
    ("build", "name"), [(NoDetector, "NoDetector"), (_rcnn_without_rpn, "GeneralizedRCNN")]
)
def test_another_detector_is_refused_with_those_known(build, name):
    with pytest.raises(BadInput, match=f"prior of {name} cannot be counted.*RetinaNet, FCOS.*RPN"):
        assignment_of(build())
