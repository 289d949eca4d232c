import copy
import inspect
import random

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.structures import pairwise_iou

from helpers.tiny import (
    TinyBottomUp,
    log_lines,
    mapper_of,
    stock_retinanet,
    tiny_fpn,
    tiny_retinanet,
    write_dicts,
)
from sampling_free.counting.count import count_anchors
from sampling_free.utils.errors import BadInput

SIZES = [(64, 96), (61, 47), (50, 133), (96, 64), (33, 65)]  # most are no multiples of 32
NUMS = [4, 1, 6, 0, 3]


def _features(model, inputs):
    """What the model's own backbone makes of a batch."""
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    return [features[f] for f in model.head_in_features]


@torch.no_grad()
def _count_view(model, mapped):
    """(valid, foreground, per class) of one loaded image: (L,), (L,), (K,)."""
    anchors = model.anchor_generator(_features(model, [mapped]))
    instances = mapped["instances"]
    valid, foreground = np.zeros(len(anchors)), np.zeros(len(anchors))
    per_class = np.zeros(model.num_classes)
    overlaps = pairwise_iou(instances.gt_boxes, type(anchors[0]).cat(anchors))
    matches, labels = model.anchor_matcher(overlaps)
    start = 0
    for level, boxes in enumerate(anchors):
        for match, label in zip(
            matches[start : start + len(boxes)].tolist(),
            labels[start : start + len(boxes)].tolist(),
        ):
            valid[level] += label != -1
            if label == 1 and len(instances):
                foreground[level] += 1
                per_class[instances.gt_classes[match]] += 1
        start += len(boxes)
    return valid, foreground, per_class


def _brute_force(model, dicts, recipes):
    """The mean over deterministic recipes, each loaded by Detectron2's mapper from the PNG files.

    Args:
        recipes (list[list[Augmentation]]): without randomness.
    """
    total = None
    for recipe in recipes:
        mapper = mapper_of(*recipe)
        for record in dicts:
            numbers = _count_view(model, mapper(record))
            total = numbers if total is None else [a + b for a, b in zip(total, numbers)]
    return [x / len(recipes) for x in total]


def _same(counts, expected):
    valid, foreground, per_class = expected
    np.testing.assert_allclose(counts.valid, valid, rtol=1e-12)
    np.testing.assert_allclose(counts.foreground, foreground, rtol=1e-12)
    np.testing.assert_allclose(counts.foreground_per_class, per_class, rtol=1e-12)


def _count(model, dicts, *augmentations, **kwargs):
    return count_anchors(model, dicts, mapper_of(*augmentations), progress=False, **kwargs)


@pytest.mark.parametrize(
    ("build", "low_quality", "num_classes"),
    [(tiny_retinanet, True, 3), (tiny_retinanet, False, 1), (stock_retinanet, True, 1)],
)
def test_counts_are_those_of_a_brute_force(tmp_path, build, low_quality, num_classes):
    model = build(num_classes=num_classes, low_quality=low_quality)
    dicts = write_dicts(tmp_path, SIZES, NUMS, num_classes, crowd=(0, 1))
    counts = _count(model, dicts)
    _same(counts, _brute_force(model, dicts, [[]]))
    # Image 1 has one object and it is a crowd, image 3 has none.
    assert (counts.num_images, counts.num_empty_images, counts.num_passes) == (5, 2, 1)
    assert counts.strides == [8, 16, 32, 64, 128]
    assert 0 < counts.foreground.sum() < counts.valid.sum()


@pytest.mark.parametrize("seed", range(2))
def test_flips_and_scales_are_counted_as_their_exact_mean(tmp_path, seed):
    model = tiny_retinanet()
    sizes = [tuple(s) for s in np.random.default_rng(seed).integers(30, 100, (3, 2)).tolist()]
    dicts = write_dicts(tmp_path, sizes, [3, 0, 5], seed=seed)
    lengths = (32, 57, 80)
    recipes = [
        [T.ResizeShortestEdge([length] * 2, 110), T.RandomFlip(prob)]
        for length in lengths
        for prob in (0.0, 1.0)
    ]
    random_recipe = T.ResizeShortestEdge(lengths, 110, "choice"), T.RandomFlip(0.5)
    _same(_count(model, dicts, *random_recipe), _brute_force(model, dicts, recipes))


def test_a_range_of_scales_is_counted_as_its_exact_mean(tmp_path):
    model = tiny_retinanet()
    dicts = write_dicts(tmp_path, [(40, 90)], [4])
    recipes = [[T.ResizeShortestEdge([n, n], 70)] for n in (30, 31, 32, 33)]
    recipe = T.ResizeShortestEdge((30, 33), 70, "range")
    _same(_count(model, dicts, recipe), _brute_force(model, dicts, recipes))


def test_an_unequal_flip_weighs_its_two_sides(tmp_path):
    model = tiny_retinanet()
    dicts = write_dicts(tmp_path, [(50, 90)], [4])
    recipes = [[T.RandomFlip(prob)] for prob in (0.0, 0.0, 0.0, 1.0)]
    expected = _brute_force(model, dicts, recipes)
    assert not np.array_equal(expected[1], _brute_force(model, dicts, recipes[:1])[1])
    _same(_count(model, dicts, T.RandomFlip(0.25)), expected)


@pytest.mark.parametrize("make", [tiny_fpn, TinyBottomUp], ids=["FPN", "no size divisibility"])
def test_levels_are_as_large_as_the_backbones_features(make):
    model = tiny_retinanet(backbone=make())
    per_cell = model.anchor_generator.num_anchors[0]
    for size in [(1, 1), (31, 33), (64, 96), (65, 127), (100, 37), (257, 12)]:
        record = {"file_name": "", "height": size[0], "width": size[1], "annotations": []}
        counts = _count(model, [record])
        image = torch.zeros(3, *size)
        real = [f.shape[-2] * f.shape[-1] * per_cell for f in _features(model, [{"image": image}])]
        assert counts.valid.tolist() == real
        assert counts.foreground.sum() == 0 and counts.num_empty_images == 1


def test_square_padding_enlarges_the_background():
    if "square_pad" not in inspect.signature(tiny_fpn().__class__).parameters:
        pytest.skip("this Detectron2's FPN has no square_pad")
    model = tiny_retinanet(backbone=tiny_fpn(square_pad=160))
    record = {"file_name": "", "height": 50, "width": 70, "annotations": []}
    image = torch.zeros(3, 50, 70)
    per_cell = model.anchor_generator.num_anchors[0]
    real = [f.shape[-2] * f.shape[-1] * per_cell for f in _features(model, [{"image": image}])]
    assert real[0] == 20 * 20 * per_cell
    assert _count(model, [record]).valid.tolist() == real


@pytest.mark.parametrize("crop", [False, True])
def test_the_detector_sees_the_very_boxes_that_the_mapper_gives(tmp_path, crop, monkeypatch):
    model = tiny_retinanet()
    dicts = write_dicts(tmp_path, SIZES, NUMS, crowd=(2,))
    seen = []
    label = model.label_anchors

    def spy(anchors, instances):
        seen.extend(instances)
        return label(anchors, instances)

    monkeypatch.setattr(model, "label_anchors", spy)
    recipe = [T.ResizeShortestEdge((45, 45), 90), T.RandomFlip(1.0)]
    if crop:
        recipe.insert(0, T.CropTransform(5, 7, 40, 25))
    before = copy.deepcopy(dicts)
    _count(model, dicts, *recipe, num_passes=1)
    assert dicts == before
    assert len(seen) == len(dicts)
    for record, ours in zip(dicts, seen):
        theirs = mapper_of(*recipe)(record)["instances"]
        assert ours.image_size == theirs.image_size
        assert torch.equal(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
        assert torch.equal(ours.gt_classes, theirs.gt_classes)


def test_boxes_recomputed_from_masks_are_those_of_the_mapper(tmp_path):
    model = tiny_retinanet()
    (record,) = write_dicts(tmp_path, [(64, 96)], [1])
    record["annotations"][0].update(bbox=[0, 0, 90, 60], segmentation=[[10, 5, 50, 5, 10, 40]])
    mapper = mapper_of(use_instance_mask=True, recompute_boxes=True)
    expected = _count_view(model, mapper(record))
    assert not np.array_equal(expected[1], _count_view(model, mapper_of()(record))[1])
    _same(count_anchors(model, [record], mapper, progress=False), expected)


def test_the_mapper_in_use_is_not_touched(tmp_path):
    mapper = mapper_of(use_instance_mask=True, use_keypoint=True)
    before = dict(vars(mapper))
    count_anchors(tiny_retinanet(), write_dicts(tmp_path, [(64, 96)], [1]), mapper, progress=False)
    assert vars(mapper) == before


class TestDrawnAugmentations:
    crop = T.RandomCrop("relative_range", (0.4, 0.4))

    @pytest.fixture
    def dicts(self, tmp_path):
        return write_dicts(tmp_path, SIZES[:3], [8, 8, 8])

    def _numbers(self, dicts, **kwargs):
        counts = _count(tiny_retinanet(), dicts, self.crop, T.RandomFlip(), **kwargs)
        return counts.num_passes, counts.valid.tolist(), counts.foreground.tolist()

    def test_a_seed_fixes_the_counts_whatever_the_global_state(self, dicts):
        first = self._numbers(dicts, seed=3)
        np.random.rand(10)
        assert self._numbers(dicts, seed=3) == first
        assert self._numbers(dicts, seed=4) != first

    def test_global_random_states_stay_as_they_are(self, dicts):
        model = tiny_retinanet()
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        _count(model, dicts, self.crop)
        assert random.getstate() == states[0]
        assert np.random.get_state()[1].tolist() == states[1]
        assert torch.equal(torch.get_rng_state(), states[2])

    def test_the_log_says_what_is_drawn_and_how_often(self, dicts):
        with log_lines() as lines:
            assert self._numbers(dicts, num_passes=2, seed=7)[0] == 2
        assert len(lines) == 1
        assert all(x in lines[0] for x in ("RandomCrop", "2 passes", "seed 7", "else is exact"))
        assert "RandomFlip" not in lines[0]
        with log_lines() as lines:
            _count(tiny_retinanet(), dicts, T.RandomFlip())
        assert lines == []

    def test_images_and_passes_are_drawn_apart(self, dicts):
        seeds = range(5)
        one = [np.array(self._numbers(dicts[:1], seed=s, num_passes=1)[1]) for s in seeds]
        two = [np.array(self._numbers(dicts[:1] * 2, seed=s, num_passes=1)[1]) for s in seeds]
        mean = [np.array(self._numbers(dicts[:1], seed=s, num_passes=2)[1]) for s in seeds]
        assert any(not np.array_equal(2 * a, b) for a, b in zip(one, two))
        assert any(not np.array_equal(a, b) for a, b in zip(one, mean))

    def test_passes_are_averaged(self, dicts):
        class CropInTurn(T.Augmentation):
            crops = [T.CropTransform(0, 0, 30, 20), T.CropTransform(20, 10, 70, 40)]
            num_calls = 0

            def get_transform(self, image):
                self.num_calls += 1
                return self.crops[self.num_calls % 2]

        expected = _brute_force(tiny_retinanet(), dicts[:1], [[crop] for crop in CropInTurn.crops])
        counts = _count(tiny_retinanet(), dicts[:1], CropInTurn(), num_passes=2)
        _same(counts, expected)
        _same(_count(tiny_retinanet(), dicts[:1], CropInTurn(), num_passes=4), expected)

    def test_augmentations_of_colors_alone_change_nothing(self, dicts):
        brighter = T.RandomBrightness(0.5, 1.5)
        expected = _brute_force(tiny_retinanet(), dicts, [[]])
        _same(_count(tiny_retinanet(), dicts, brighter, num_passes=3), expected)


def test_a_foreign_mapper_is_refused_with_a_way_out(tmp_path):
    dicts = write_dicts(tmp_path, [(64, 64)], [1])
    with pytest.raises(BadInput, match="dataloader.train.mapper.*function.*model.prior"):
        count_anchors(tiny_retinanet(), dicts, lambda record: record, progress=False)


@pytest.mark.parametrize("key", ["height", "width"])
def test_a_record_without_a_size_is_named(tmp_path, key):
    dicts = write_dicts(tmp_path, [(64, 64)] * 2, [1, 1])
    del dicts[1][key]
    with pytest.raises(BadInput, match="1.png.*height and width"):
        _count(tiny_retinanet(), dicts)


# --- objects that no anchor takes for its own -----------------------------------------------------


def _unreached(model, mapped):
    """(objects, those that no foreground anchor is matched with) of an image, one by one."""
    anchors = model.anchor_generator(_features(model, [mapped]))
    instances = mapped["instances"]
    overlaps = pairwise_iou(instances.gt_boxes, type(anchors[0]).cat(anchors))
    matches, labels = model.anchor_matcher(overlaps)
    matched = {m for m, label in zip(matches.tolist(), labels.tolist()) if label == 1}
    return len(instances), sum(i not in matched for i in range(len(instances)))


@pytest.mark.parametrize(
    ("build", "low_quality"), [(tiny_retinanet, True), (stock_retinanet, False)]
)
def test_objects_and_those_unreached_are_those_of_a_brute_force(tmp_path, build, low_quality):
    model = build(low_quality=low_quality)
    dicts = write_dicts(tmp_path, SIZES, [12, 9, 7, 0, 5], crowd=(0, 1))
    recipes = [[T.RandomFlip(prob)] for prob in (0.0, 1.0)]
    expected = np.zeros(2)
    with torch.no_grad():
        for recipe in recipes:
            mapper = mapper_of(*recipe)
            expected += np.sum([_unreached(model, mapper(record)) for record in dicts], axis=0) / 2
    counts = _count(model, dicts, T.RandomFlip(0.5))
    assert (counts.num_objects, counts.num_unreached) == tuple(expected)
    assert counts.num_objects == 31 and 0 < counts.num_unreached < 31


def test_objects_cut_away_by_a_view_are_none_of_it(tmp_path):
    (record,) = write_dicts(tmp_path, [(64, 96)], [1])
    record["annotations"][0]["bbox"] = [60, 40, 20, 20]
    counts = _count(tiny_retinanet(), [record], T.CropTransform(0, 0, 30, 30), num_passes=1)
    assert counts.num_objects == counts.num_unreached == 0
    counts = _count(tiny_retinanet(), [record])
    assert (counts.num_objects, counts.num_unreached) == (1, 0)


def test_parts_of_a_set_add_up(tmp_path):
    model = tiny_retinanet(low_quality=False)
    dicts = write_dicts(tmp_path, SIZES, [12, 9, 7, 0, 5])
    whole, parts = _count(model, dicts), _count(model, dicts[:2]) + _count(model, dicts[2:])
    assert vars(whole).keys() == vars(parts).keys()
    for name in ("num_objects", "num_unreached", "num_images", "num_empty_images"):
        assert getattr(parts, name) == getattr(whole, name)
