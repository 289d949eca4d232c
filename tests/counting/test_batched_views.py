"""Sizes and boxes of many images at once against ``DatasetMapper``, bit by bit."""

import pickle

import detectron2.data.transforms as T
import numpy as np
import pytest
from detectron2.structures import BoxMode

from helpers.tiny import mapper_of
from sampling_free.counting.batched_views import Records, apply, read_records, recipes
from sampling_free.counting.views import enumerate_views

RECIPES = {
    "nothing": [],
    "one length": [T.ResizeShortestEdge(800, 1333)],
    "choice and flip": [
        T.ResizeShortestEdge((640, 672, 704, 736, 768, 800, 800), 1333, "choice"),
        T.RandomFlip(),
    ],
    "range": [T.ResizeShortestEdge((31, 45), 60, "range"), T.RandomFlip(0.25)],
    "both sides": [
        T.RandomFlip(0.5, horizontal=False, vertical=True),
        T.ResizeShortestEdge((0, 33), 64, "choice"),
        T.RandomFlip(0.5),
    ],
    "twice": [T.ResizeShortestEdge((20, 31), 70, "choice"), T.ResizeShortestEdge((16, 17), 40)],
    "never flipped": [T.RandomFlip(0.0)],
}


def annotation(rng, size):
    height, width = size
    low = rng.uniform(-0.2, 1, 2) * (width, height)
    sides = np.exp(rng.uniform(np.log(1e-3), np.log(1.5 * max(size)), 2))
    box = np.concatenate([low, low + sides])
    kind = rng.integers(6)
    mode = BoxMode.XYWH_ABS if rng.random() < 0.6 else BoxMode.XYXY_ABS
    if kind == 0:
        box = box[[2, 3, 0, 1]]  # the wrong way round
    if kind == 1:
        box[2:] = box[:2]  # empty
    if mode == BoxMode.XYWH_ABS:
        box[2:] -= box[:2]
    box = box.tolist() if kind < 4 else box.round(2).tolist()
    if kind == 5:
        box = [int(x) for x in box]
        if rng.random() < 0.3:
            box[rng.integers(4)] += 0.5  # not all of them whole
    return {
        "bbox": tuple(box) if rng.random() < 0.3 else box,
        "bbox_mode": mode if rng.random() < 0.5 else int(mode),
        "category_id": int(rng.integers(5)),
        **({"iscrowd": int(rng.random() < 0.2)} if rng.random() < 0.5 else {}),
    }


def dicts_of(seed, num=60):
    """Records of many sizes with boxes of all kinds; some have no annotations, or no such key."""
    rng = np.random.default_rng(seed)
    dicts = []
    for _ in range(num):
        size = rng.integers(1, 700, 2).tolist()
        record = {"height": size[0], "width": size[1]}
        if rng.random() < 0.9:
            annotations = [annotation(rng, size) for _ in range(rng.integers(8))]
            record["annotations"] = annotations
        dicts.append(record)
    return dicts


def by_mapper(view, record):
    """(size, boxes, classes) of a view by Detectron2's own mapper."""
    record = {"annotations": [dict(a) for a in record.get("annotations", [])]}
    mapper_of()._transform_annotations(record, view.transforms, view.size)
    instances = record["instances"]
    return view.size, instances.gt_boxes.tensor.numpy(), instances.gt_classes.numpy()


def check(augmentations, dicts):
    records = read_records(dicts)
    views = [enumerate_views(augmentations, (d["height"], d["width"])) for d in dicts]
    outcomes = recipes(augmentations)
    num_boxes = 0
    for k, (steps, weight) in enumerate(outcomes):
        sizes, boxes, classes, starts = apply(steps, records)
        assert boxes.dtype == np.float32 and len(boxes) == len(classes) == starts[-1]
        for i, record in enumerate(dicts):
            assert len(views[i]) == len(outcomes) and views[i][k].weight == weight
            size, expected, their_classes = by_mapper(views[i][k], record)
            rows = slice(starts[i], starts[i + 1])
            assert tuple(sizes[i]) == tuple(size)
            assert np.array_equal(boxes[rows], expected)
            assert np.array_equal(classes[rows], their_classes)
            num_boxes += len(expected)
    assert num_boxes > len(outcomes) * len(dicts)


@pytest.mark.parametrize("name", RECIPES)
def test_sizes_boxes_and_classes_are_those_of_the_mapper(name):
    check(RECIPES[name], dicts_of(0))


def test_objects_are_dropped_from_the_same_size_down():
    sides = [0.0, 1e-6, 9.9e-6, float(np.float32(1e-5)), 1e-5, 1.1e-5, 1e-4, 1.0]
    annotations = [
        {"bbox": [0.0, 0.0, *wh], "bbox_mode": BoxMode.XYXY_ABS, "category_id": k}
        for k, wh in enumerate([(s, 5.0) for s in sides] + [(5.0, s) for s in sides])
    ]
    dicts = [{"height": 10, "width": 10, "annotations": annotations}] * 2
    (view,) = enumerate_views([], (10, 10))
    ((steps, _),) = recipes([])
    _, boxes, classes, starts = apply(steps, read_records(dicts))
    _, expected, their_classes = by_mapper(view, dicts[0])
    assert 0 < len(expected) < len(annotations) and starts.tolist() == [0, 6, 12]
    assert np.array_equal(boxes[:6], expected) and np.array_equal(classes[:6], their_classes)


def test_a_part_of_the_images_is_as_if_they_were_alone():
    dicts = dicts_of(5)
    whole = read_records(dicts)
    for begin, end in [(0, 7), (7, 60), (3, 3), (50, 99)]:
        part, alone = whole.part(begin, end), read_records(dicts[begin:end])
        assert all(np.array_equal(a, b) for a, b in zip(part, alone))


def test_the_dicts_stay_as_they_are():
    dicts = dicts_of(6)
    before = pickle.dumps(dicts)
    apply(recipes(RECIPES["both sides"])[0][0], read_records(dicts))
    assert pickle.dumps(dicts) == before


OTHER_BOXES = {
    "an array": ([[np.array([1.0, 2, 3, 4]), 0]]),
    "numbers of numpy": ([[[np.float32(1), 2, 3, 4], 0]]),
    "True": ([[[True, 2, 3, 4], 0]]),
    "rotated": ([[[1.0, 2, 3, 4, 5], BoxMode.XYWHA_ABS]]),
    "relative": ([[[0.1, 0.2, 0.3, 0.4], BoxMode.XYXY_REL]]),
    "one of many": ([[[1.0, 2, 3, 4], 0], [(1, 2, 3, 4), 1], [np.ones(4), 0]]),
}


@pytest.mark.parametrize("name", OTHER_BOXES)
def test_boxes_that_are_no_plain_lists_are_left_to_the_mapper(name):
    annotations = [
        {"bbox": box, "bbox_mode": mode, "category_id": 0} for box, mode in OTHER_BOXES[name]
    ]
    assert read_records([{"height": 9, "width": 9, "annotations": annotations}]) is None
    crowd = [{**a, "iscrowd": 1} for a in annotations]
    records = read_records([{"height": 9, "width": 9, "annotations": crowd}])
    assert len(records.boxes) == 0 and records.starts.tolist() == [0, 0]


def test_no_images_are_no_images():
    records = read_records([])
    sizes, boxes, classes, starts = apply(recipes([T.ResizeShortestEdge(20)])[0][0], records)
    assert isinstance(records, Records) and sizes.shape == (0, 2) and boxes.shape == (0, 4)
    assert len(classes) == 0 and starts.tolist() == [0]
