"""The sparse ATSS against the detector's own assignment on every anchor, and the ties of both."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes

from helpers.literal_points import atss_literal, square_anchors
from helpers.many_images import (
    NUM_CLASSES,
    anchors_of,
    check_every_anchor,
    coco_tiny,
    images_of,
    made_up_images,
    sorted_rows,
)
from helpers.tiny import STRIDES
from helpers.tiny_points import points_model
from sampling_free import ATSS
from sampling_free.counting.sparse import atss, parts
from sampling_free.counting.sparse.atss import ATSSMatcher
from sampling_free.counting.sparse.grid import Direction
from sampling_free.detectors.atss_assignment import atss_match, stand_out


@pytest.fixture(scope="module")
def label_anchors():
    """``ATSS.label_anchors`` of k candidates."""
    models = {}

    def of(topk):
        if topk not in models:
            models[topk] = points_model(ATSS, topk=topk)
            models[topk].num_classes = NUM_CLASSES
        return models[topk].label_anchors

    return of


def _squares(strides, offset=0.5, side=8.0):
    return DefaultAnchorGenerator(
        sizes=[[side * s] for s in strides], aspect_ratios=[1.0], strides=strides, offset=offset
    )


def _sparse(generator, topk=9):
    cells = tuple(x.numpy() for x in generator.cell_anchors)
    return ATSSMatcher(cells, tuple(generator.strides), generator.offset, topk)


# --- the anchors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topk", "strides", "offset", "side"),
    # A third of the product, in which every number of candidates meets all strides.
    [
        (topk, strides, *[(0.5, 8.0), (0.0, 3.0), (0.3, 5.3)][(i + j) % 3])
        for i, topk in enumerate([1, 3, 9, 40])
        for j, strides in enumerate([STRIDES, [4, 8, 12], [16], [6, 7, 9, 50]])
    ],
)
def test_every_anchor_has_the_object_of_brute_force(label_anchors, topk, strides, offset, side):
    images = made_up_images([topk, len(strides), int(side)], strides, 60)
    sizes = images.shapes.prod(axis=2)
    assert (np.diff(images.starts) == 0).any() and sizes.min() < 100 < sizes.max()
    generator = _squares(strides, offset, side)
    found = _sparse(generator, topk)(images)
    assert check_every_anchor(found, images, generator, label_anchors(topk)) > 20


@pytest.mark.parametrize("topk", [9, 15])
def test_so_it_is_on_real_images_at_full_size(label_anchors, topk):
    images, generator = coco_tiny(STRIDES), _squares(STRIDES)
    found = _sparse(generator, topk)(images)
    num = check_every_anchor(found, images, generator, label_anchors(topk))
    assert num > 5 * len(images.boxes)
    assert set(found.level.tolist()) == set(range(5))


def test_so_it_is_in_crowds(label_anchors):
    images, generator = made_up_images(1, STRIDES, 5, most=400), _squares(STRIDES)
    assert len(images.boxes) > 400
    check_every_anchor(_sparse(generator)(images), images, generator, label_anchors(9))


def test_so_it_is_for_levels_of_a_few_anchors_or_one(label_anchors):
    sizes = [(h, w) for h in (1, 40, 64, 200) for w in (1, 40, 130)]
    rng = np.random.default_rng(0)
    centers = [rng.uniform(0, 1, (4, 2)) * size[::-1] for size in sizes]
    boxes = [np.hstack([x - y, x + y]) for x in centers for y in [rng.uniform(3, 90, x.shape)]]
    images, generator = images_of(boxes, sizes, STRIDES), _squares(STRIDES)
    assert (images.shapes.prod(axis=2) == 1).any(axis=1).sum() == 6
    for topk in (2, 9, 1000):
        found = _sparse(generator, topk)(images)
        check_every_anchor(found, images, generator, label_anchors(topk))


def test_objects_with_their_center_far_from_the_grid_change_nothing(label_anchors):
    box = [20.0, 30.0, 90.0, 80.0]
    far = [[-900, -70, 300, 130], [-5000, 20, -10, 60], [40, 1000, 60, 4000], [-400] * 2 + [10] * 2]
    images, generator = (
        images_of([[box], [box, *far]], [(128, 160)] * 2, STRIDES),
        _squares(STRIDES),
    )
    found = _sparse(generator)(images)
    assert check_every_anchor(found, images, generator, label_anchors(9)) >= 10
    assert found.anchor[found.object == 0].tolist() == found.anchor[found.object == 1].tolist()


def test_so_it_is_for_anchors_beside_their_places_on_the_grid(label_anchors):
    images, generator = made_up_images(4, STRIDES, 40), _squares(STRIDES)
    for level in generator.cell_anchors:
        level += torch.tensor([31.0, -70.0, 31.0, -70.0])
    found = _sparse(generator)(images)
    assert check_every_anchor(found, images, generator, label_anchors(9)) > 60


# --- ties -----------------------------------------------------------------------------------------


def test_of_equally_close_anchors_the_first_are_the_candidates():
    # Centers on the grid's axes of symmetry; the oracle sorts by distance, then by index.
    rng = np.random.default_rng(0)
    size, strides = (64, 96), (8, 16, 32)
    levels, generator = square_anchors(size, strides), _squares(strides)
    centers = 4.0 * rng.integers(0, (25, 17), (300, 2))
    half = 4.0 * rng.integers(1, 9, (300, 2))
    boxes = np.hstack([centers - half, centers + half])
    images = images_of(boxes[:, None], [size] * 300, strides)
    found, differing = _sparse(generator)(images), 0
    dense = anchors_of(generator, images.shapes[0])
    for i, box in enumerate(boxes):
        expected = np.flatnonzero(atss_literal(levels, box[None]) == 0).tolist()
        matched = atss_match(dense, Boxes(torch.tensor(box[None]).float()))
        assert torch.nonzero(matched == 0).flatten().tolist() == expected
        assert sorted(found.anchor[found.image == i].tolist()) == expected
        # With the last of them in place of the first there are others.
        mirrored = atss_literal([x[::-1] for x in levels], box[None])
        parts = np.split(mirrored, np.cumsum([len(x) for x in levels])[:-1])
        last = np.concatenate([x[::-1] for x in parts])
        differing += np.flatnonzero(last == 0).tolist() != expected
    assert differing > 30


def test_an_anchor_that_two_objects_overlap_alike_is_the_first_ones():
    box, shifted = (
        [20.0, 22.0, 60.0, 62.0],
        [20.0, 26.0, 60.0, 66.0],
    )  # around (40, 42) and (40, 46)
    images = images_of([[box, box], [box, shifted], [shifted, box]], [(96, 96)] * 3, [8])
    generator = _squares([8], side=4.0)
    found = sorted_rows(_sparse(generator, 25)(images))
    assert {g for i, _, _, g in found if i == 0} == {0}
    owners = [{a: g - 2 * i for j, _, a, g in found if j == i} for i in (1, 2)]
    # Mirrored around y = 44, the row there belongs to both alike.
    row = [5 * 12 + x for x in range(12) if 5 * 12 + x in owners[0]]
    assert len(row) > 0 and {owners[i][a] for i in (0, 1) for a in row} == {0}


def test_the_choice_does_not_hang_on_the_other_objects():
    images, generator = made_up_images(5, STRIDES, 30), _squares(STRIDES)
    for i, shapes in enumerate(images.shapes):
        levels = anchors_of(generator, shapes)
        boxes = torch.from_numpy(images.boxes[images.starts[i] : images.starts[i + 1]])
        together = atss_match(levels, Boxes(boxes))
        alone = [atss_match(levels, Boxes(x[None])) == 0 for x in boxes]
        union = torch.stack(alone).any(dim=0) if alone else torch.zeros_like(together, dtype=bool)
        assert torch.equal(together >= 0, union)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_chooses_the_same_anchors():
    images, generator = made_up_images(6, STRIDES, 100), _squares(STRIDES)
    for i, shapes in enumerate(images.shapes):
        levels = anchors_of(generator, shapes)
        boxes = Boxes(torch.from_numpy(images.boxes[images.starts[i] : images.starts[i + 1]]))
        on_gpu = atss_match([x.to("cuda") for x in levels], boxes.to("cuda"))
        assert torch.equal(on_gpu.cpu(), atss_match(levels, boxes))


# --- the statistics -------------------------------------------------------------------------------


def _overlaps(rng, num, objects):
    values = rng.random((num, objects)) * (rng.random((num, objects)) < 0.7)
    return values.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("num", [1, 2, 7, 45])
def test_those_stand_out_that_reach_mean_plus_deviation(num):
    overlaps = _overlaps(np.random.default_rng(num), num, 30)
    found = stand_out(overlaps)
    for column, stands_out in zip(overlaps.T, found.T):
        exact = [Fraction(x) for x in column]
        above = [x - sum(exact) / num for x in exact]
        variance = sum(x * x for x in above) / max(num - 1, 1)
        assert stands_out.tolist() == [x >= 0 and x * x >= variance for x in above]
    assert found.any() == (num != 2) and (num == 1 or not found.all())


@pytest.mark.parametrize("num", [1, 9, 45])
def test_equal_overlaps_all_stand_out(num):
    values = np.random.default_rng(num).random(500).astype(np.float32).astype(np.float64)
    assert stand_out(np.tile(values, (num, 1))).all()
    assert stand_out(np.zeros((num, 1))).all()


@pytest.mark.parametrize("num", [9, 45])
def test_arrays_and_tensors_of_any_layout_give_the_same(num):
    overlaps = np.random.default_rng(0).random((num, 2000))
    # The first is at the limit, so that rounding decides: solved for its distance from the others.
    others = overlaps[1:]
    factor = (num - 1) ** 2 / num**2 - 1 / num
    overlaps[0] = others.mean(axis=0) + np.sqrt(others.var(axis=0) / factor)
    found = stand_out(overlaps)
    assert 200 < found[0].sum() < 1800
    assert np.array_equal(stand_out(torch.from_numpy(overlaps)).numpy(), found)
    transposed = torch.from_numpy(np.ascontiguousarray(overlaps.T)).T
    assert np.array_equal(stand_out(transposed).numpy(), found)
    alone = [stand_out(torch.from_numpy(overlaps[:, i : i + 1].copy())) for i in range(0, 2000, 9)]
    assert np.array_equal(torch.cat(alone, dim=1).numpy(), found[:, ::9])


# --- the window -----------------------------------------------------------------------------------


def test_a_window_that_is_too_small_is_widened(monkeypatch):
    windows = []
    closest = atss._closest

    def spy(*args):
        windows.append((args[-1], len(args[1])))
        return closest(*args)

    monkeypatch.setattr(atss, "_closest", spy)
    # In the middle of the image the first window is enough, at its border it is not always.
    middle = [[500 + x, 500 + x, 600 + x, 600 + x] for x in np.linspace(0, 128, 40)]
    _sparse(_squares([8, 16]))(images_of([middle], [(1024, 1024)], [8, 16]))
    assert windows == [(4, 80)]
    windows.clear()
    border = [[-50 + x, 500, 50 + x, 600] for x in np.linspace(0, 8, 40)]
    _sparse(_squares([8, 16]))(images_of([border], [(1024, 1024)], [8, 16]))
    (side, num), (wider, fewer) = windows
    assert (side, num, wider) == (4, 80, 8) and 0 < fewer < num


def test_only_anchors_near_an_object_are_looked_at(monkeypatch):
    looked_at = []
    anchors = Direction.anchors

    def spy(*args):
        result = anchors(*args)
        looked_at.append(result[0].size)
        return result

    monkeypatch.setattr(Direction, "anchors", spy)
    images = images_of([[[100, 100, 160, 190], [3000, 2500, 3300, 2600]]], [(4096, 4096)], STRIDES)
    found = _sparse(_squares(STRIDES))(images)
    assert images.shapes.prod(axis=2).sum() > 300_000
    assert 4 <= len(found.anchor) and 0 < sum(looked_at) < 1000


# --- batches --------------------------------------------------------------------------------------


def test_without_objects_there_is_no_foreground():
    found = _sparse(_squares(STRIDES))(images_of([[], []], [(64, 96)] * 2, STRIDES))
    assert [x.dtype for x in found] == [np.int64] * 4 and [len(x) for x in found] == [0] * 4


def test_objects_without_area_have_no_anchor_and_change_nothing():
    box, points = [10.3, 12.1, 70.7, 81.9], [[40.3, 40.1, 40.3, 40.1], [44.0, 10.0, 44.0, 90.0]]
    images = images_of([[box], [box, *points]], [(96, 128)] * 2, STRIDES)
    found = _sparse(_squares(STRIDES))(images)
    rows = sorted_rows(found)
    assert len(rows) > 0 and len(rows) % 2 == 0 and set(found.object.tolist()) == {0, 1}
    assert [x[1:3] for x in rows if x[0] == 0] == [x[1:3] for x in rows if x[0] == 1]


@pytest.mark.parametrize("most_objects, most_anchors", [(7, 2**22), (20, 3000)])
def test_the_parts_do_not_matter(monkeypatch, most_objects, most_anchors):
    images, matcher = made_up_images(2, STRIDES, 50), _sparse(_squares(STRIDES))
    at_once = sorted_rows(matcher(images))
    monkeypatch.setattr(parts, "MOST_OBJECTS", most_objects)
    monkeypatch.setattr(parts, "MOST_ANCHORS", most_anchors)
    assert sorted_rows(matcher(images)) == at_once and len(at_once) > 50
