"""Counting by the sparse matchers against the detector's own label of every anchor."""

import json
import pickle

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, BoxMode, Instances

import estimate_prior as script
from helpers.tiny import log_lines, mapper_of, stock_retinanet, tiny_retinanet, write_dicts
from helpers.tiny_detectors import stock_fcos, tiny_fcos, tiny_rcnn
from helpers.tiny_points import points_model
from helpers.tiny_run import call_main, only_error, write_config
from sampling_free import ATSS, SamplingFreePAA
from sampling_free.counting import count as counting
from sampling_free.counting import sparse_count as sparse_counting
from sampling_free.counting.assignment import assignment_of
from sampling_free.counting.count import count_anchors, count_by_brute_force, is_fast
from sampling_free.counting.sparse.images import Images
from sampling_free.counting.sparse.select import Unknown, sparse_matcher
from sampling_free.utils.errors import BadInput

SIZES = [(64, 96), (61, 47), (50, 133), (96, 64), (33, 65), (100, 100), (20, 150)]
NUMS = [4, 1, 6, 0, 3, 12, 9]
DETECTORS = {
    "RetinaNet": lambda: tiny_retinanet(low_quality=False),
    "stock RetinaNet": stock_retinanet,
    "FCOS": tiny_fcos,
    "stock FCOS": lambda: stock_fcos(center_sampling_radius=float("inf")),
    "ATSS": lambda: points_model(ATSS),
    "PAA": lambda: points_model(SamplingFreePAA),
    "Faster R-CNN": tiny_rcnn,
    "stock Faster R-CNN": lambda: tiny_rcnn(stock=True),
    "C4": lambda: tiny_rcnn("c4"),
    "Cascade R-CNN": lambda: tiny_rcnn("cascade", stock=True),
}
VIEWS = T.ResizeShortestEdge((32, 57, 80), 110, "choice"), T.RandomFlip(0.25)
CROP = T.RandomCrop("relative_range", (0.4, 0.4))


@pytest.fixture
def dicts(tmp_path):
    dicts = write_dicts(tmp_path, SIZES, NUMS, crowd=(0, 1))
    dicts[5]["annotations"][3] = dict(dicts[5]["annotations"][2])  # two objects with the same box
    return dicts


@pytest.fixture
def sparse_only(monkeypatch):
    """Makes every fall-back an error."""
    monkeypatch.setattr(counting, "count_by_brute_force", None)


def same(a, b):
    for name, value in vars(a).items():
        assert np.array_equal(value, getattr(b, name)), name


def boxes_of(rng, size, num):
    """(num, 4) float32 of all sizes, some alike and some at the border."""
    height, width = size
    sides = np.exp(rng.uniform(0, np.log(max(size)), (num, 2)))
    sides = np.minimum(sides, (width, height))
    corner = rng.random((num, 2)) * ((width, height) - sides)
    corner[rng.random(num) < 0.2] = 0
    boxes = np.hstack([corner, corner + sides]).astype(np.float32)
    return boxes[rng.integers(0, max(num, 1), num)] if rng.random() < 0.3 else boxes


@pytest.mark.parametrize("name", DETECTORS)
def test_labels_and_boxes_of_every_anchor_are_those_of_the_detector(name):
    assignment = assignment_of(DETECTORS[name]())
    matcher = sparse_matcher(assignment, mapper_of())
    rng = np.random.default_rng(0)
    for _ in range(6):
        sizes = rng.integers(1, 200, (20, 2))
        shapes = -(-sizes[:, None] // np.array(assignment.strides)[:, None])
        boxes = [boxes_of(rng, size, rng.integers(0, 12)) for size in sizes]
        starts = np.cumsum([0, *map(len, boxes)])
        found = matcher(Images(np.concatenate(boxes), starts, shapes))
        classes = rng.integers(assignment.num_classes, size=starts[-1])
        for i, size in enumerate(sizes.tolist()):
            rows = slice(starts[i], starts[i + 1])
            objects = Instances(
                tuple(size),
                gt_boxes=Boxes(torch.from_numpy(boxes[i])),
                gt_classes=torch.from_numpy(classes[rows]),
            )
            levels = assignment.anchor_generator(
                [torch.empty(1, 1, *x) for x in shapes[i].tolist()]
            )
            labels, matched = assignment.labels_and_boxes(levels, objects)
            of_image = found.image == i
            ours = np.full(len(labels), assignment.num_classes)
            ours[found.anchor[of_image]] = np.where(
                found.object[of_image] >= 0, classes[found.object[of_image]], -1
            )
            assert np.array_equal(ours, labels.numpy())
            foreground = of_image & (found.object >= 0)
            theirs = matched.numpy()[found.anchor[foreground]]
            assert np.array_equal(np.concatenate(boxes)[found.object[foreground]], theirs)


@pytest.mark.parametrize("name", DETECTORS)
def test_counts_are_those_of_brute_force(dicts, name, sparse_only):
    model, mapper = DETECTORS[name](), mapper_of(*VIEWS)
    with log_lines() as lines:
        counts = count_anchors(model, dicts, mapper, progress=False)
    assert lines == [] and counts.foreground.sum() > 0
    same(counts, count_by_brute_force(model, dicts, mapper, progress=False))
    assert is_fast(model, mapper)


def _whole(dicts):
    for image in dicts:
        for a in image["annotations"]:
            a["bbox"] = [int(x) for x in a["bbox"]]


def _arrays(dicts):
    for image in dicts:
        for a in image["annotations"]:
            x, y, w, h = a["bbox"]
            a.update(bbox=np.array([x, y, x + w, y + h]), bbox_mode=BoxMode.XYXY_ABS)


def _foreign_classes(dicts):
    for image in dicts:
        for k, a in enumerate(image["annotations"]):
            a["category_id"] = [-1, 0, 1, 2, 3, 7][k % 6]


def _masks(dicts):
    del dicts[:2], dicts[1]  # the mapper makes masks of at least one object
    for image in dicts:
        for a in image["annotations"]:
            x, y, w, h = a["bbox"]
            a["segmentation"] = [[x, y, x + w / 2, y, x, y + h / 3]]


OTHERS = {
    "whole numbers": (_whole, VIEWS, {}),
    "boxes as arrays": (_arrays, VIEWS, {}),
    "classes that the detector has not": (_foreign_classes, VIEWS, {}),
    "crops": (None, (*VIEWS, CROP), {}),
    "crops of several weights": (None, (CROP, T.RandomFlip(0.25)), {}),
    "boxes from masks": (_masks, VIEWS, {"use_instance_mask": True, "recompute_boxes": True}),
    "masks that do not matter": (_masks, VIEWS, {"use_instance_mask": True}),
    "no image": (lambda dicts: dicts.clear(), VIEWS, {}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_so_they_are_for_other_data_and_recipes(dicts, name, sparse_only):
    change, recipe, settings = OTHERS[name]
    if change:
        change(dicts)
    model, mapper = tiny_retinanet(), mapper_of(*recipe, **settings)
    counts = count_anchors(model, dicts, mapper, progress=False, seed=3)
    same(counts, count_by_brute_force(model, dicts, mapper, progress=False, seed=3))
    assert (counts.num_passes == 3) == ("crops" in name)


def test_a_count_is_fast_if_it_is_sparse_and_nothing_is_drawn():
    assert is_fast(tiny_rcnn(), mapper_of(*VIEWS))
    assert not is_fast(tiny_rcnn(), mapper_of(CROP))
    border = tiny_rcnn(rpn={"anchor_boundary_thresh": 0})
    assert not is_fast(border, mapper_of(*VIEWS))


# --- what the sparse path does not know -----------------------------------------------------------


class MyGenerator(DefaultAnchorGenerator):
    pass


class MyMatcher(Matcher):
    pass


class MyRetinaNet(RetinaNet):
    def label_anchors(self, anchors, gt_instances):
        return super().label_anchors(anchors, gt_instances)


class MyRPN(RPN):
    def label_and_sample_anchors(self, anchors, gt_instances):
        return super().label_and_sample_anchors(anchors, gt_instances)


class MyFCOS(FCOS):
    def match_anchors(self, *args):
        return super().match_anchors(*args)

    def _match_anchors(self, *args):
        return super()._match_anchors(*args)


class MyATSS(ATSS):
    def labels_and_boxes(self, matched, gt_instances):
        return super().labels_and_boxes(matched, gt_instances)


class MyMapper(DatasetMapper):
    def _transform_annotations(self, *args):
        super()._transform_annotations(*args)


def _generator(cls=DefaultAnchorGenerator, offset=0.0, sizes=((16,), (32,), (64,), (128,), (256,))):
    return cls(
        sizes=[list(x) for x in sizes],
        aspect_ratios=[[1.0]],
        strides=[8, 16, 32, 64, 128],
        offset=offset,
    )


def _pairs():
    return _generator(sizes=[(s, 2 * s) for s in (16, 32, 64, 128, 256)])


def _in_float64():
    model = stock_retinanet()
    model.anchor_generator.double()
    return model


def _with(model, **attributes):
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def _rcnn_with_my_rpn():
    model = tiny_rcnn(stock=True)
    model.proposal_generator.__class__ = MyRPN
    return model


def _replaced():
    model = stock_retinanet()
    method = model.label_anchors
    return _with(model, label_anchors=lambda *args: method(*args))


UNKNOWN = {
    "MyGenerator": lambda: _with(stock_retinanet(), anchor_generator=_generator(MyGenerator)),
    "offset of 0.3": lambda: _with(stock_retinanet(), anchor_generator=_generator(offset=0.3)),
    "MyMatcher": lambda: _with(
        stock_retinanet(), anchor_matcher=MyMatcher([0.4, 0.5], [0, -1, 1], True)
    ),
    "matcher gives -1": lambda: _with(
        stock_retinanet(), anchor_matcher=Matcher([0.1, 0.5], [-1, 0, 1], True)
    ),
    "MyRetinaNet has its own label_anchors": lambda: tiny_retinanet(MyRetinaNet),
    "RetinaNet has its own label_anchors": _replaced,
    "MyRPN has its own label_and_sample_anchors": _rcnn_with_my_rpn,
    "anchor_boundary_thresh is 0": lambda: tiny_rcnn(rpn={"anchor_boundary_thresh": 0}),
    "MyFCOS has its own": lambda: tiny_fcos(MyFCOS),
    "MyATSS has its own labels_and_boxes": lambda: points_model(MyATSS),
    "several anchors at each place": lambda: _with(points_model(ATSS), anchor_generator=_pairs()),
    "no squares as large as their stride": lambda: _with(
        tiny_fcos(), anchor_generator=_generator()
    ),
    "anchors are torch.float64": _in_float64,
}


@pytest.mark.parametrize("words", UNKNOWN)
def test_the_detector_labels_every_anchor_where_that_is_not_known_and_says_why(dicts, words):
    model, mapper = UNKNOWN[words](), mapper_of(T.ResizeShortestEdge(48, 80))
    with pytest.raises(Unknown, match=words):
        sparse_matcher(assignment_of(model), mapper)
    with log_lines() as lines:
        counts = count_anchors(model, dicts, mapper, progress=False)
    assert len(lines) == 1 and words in lines[0] and "every object, which is slow" in lines[0]
    same(counts, count_by_brute_force(model, dicts, mapper, progress=False))


def test_so_it_does_for_a_mapper_that_makes_objects_in_its_own_way(dicts):
    mapper = MyMapper(True, augmentations=list(VIEWS), image_format="BGR")
    with log_lines() as lines:
        counts = count_anchors(tiny_retinanet(), dicts, mapper, progress=False)
    assert len(lines) == 1 and "MyMapper has its own way" in lines[0]
    same(counts, count_anchors(tiny_retinanet(), dicts, mapper_of(*VIEWS), progress=False))


# --- chunks and processes -------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [VIEWS, (*VIEWS, CROP)], ids=["exact", "drawn"])
def test_the_numbers_do_not_depend_on_chunks_or_processes(dicts, recipe, monkeypatch):
    model, mapper = tiny_retinanet(low_quality=False), mapper_of(*recipe)
    whole = count_anchors(model, dicts, mapper, progress=False)
    monkeypatch.setattr(sparse_counting, "IMAGES_AT_ONCE", 3)
    same(count_anchors(model, dicts, mapper, progress=False), whole)
    same(count_anchors(model, dicts, mapper, progress=False, num_workers=2), whole)
    assert whole.num_unreached > 0


@pytest.mark.parametrize("recipe", [VIEWS, (CROP,)], ids=["exact", "drawn"])
def test_what_counts_can_be_sent_to_a_process_that_is_not_forked(dicts, recipe, monkeypatch):
    def sent(counter, chunks, num_workers):
        assert num_workers == 1
        yield from map(pickle.loads(pickle.dumps(counter)), pickle.loads(pickle.dumps(chunks)))

    for build in DETECTORS.values():
        model, mapper = build(), mapper_of(*recipe)
        here = count_anchors(model, dicts, mapper, progress=False)
        with monkeypatch.context() as patch:
            patch.setattr(sparse_counting, "_map", sent)
            same(count_anchors(model, dicts, mapper, progress=False, num_workers=1), here)


@pytest.mark.parametrize("num", [-1, 1.5, "2", True])
def test_a_number_of_workers_has_to_be_one(dicts, num):
    with pytest.raises(BadInput, match="num_workers=.*whole number"):
        count_anchors(tiny_retinanet(), dicts, mapper_of(), progress=False, num_workers=num)


def test_a_record_without_a_size_is_named_by_a_worker_too(dicts):
    del dicts[2]["width"]
    for recipe in (VIEWS, (CROP,)):
        for num in (0, 1):
            with pytest.raises(BadInput, match="2.png: its record has no height and width"):
                mapper = mapper_of(*recipe)
                count_anchors(tiny_retinanet(), dicts, mapper, progress=False, num_workers=num)


# --- objects that no anchor takes -----------------------------------------------------------------


def test_an_object_is_reached_if_one_with_the_same_box_in_its_image_is():
    a, b, c = [0, 0, 9, 9], [1, 1, 5, 5], [2, 2, 7, 7]
    boxes = np.array([a, b, a, b, c, a], np.float32)  # images: a b a | b c | none | a
    images = Images(boxes, np.array([0, 3, 5, 5, 6]), np.ones((4, 1, 2), int))

    def num(*matched):
        return sparse_counting.num_unreached(images, np.array(matched, int))

    assert num() == 6
    assert num(0) == num(2) == num(0, 2, 2) == 4
    assert num(1) == num(3) == num(5) == 5
    assert num(0, 1, 3, 4, 5) == 0


def test_the_tool_counts_in_several_processes(tmp_path, monkeypatch, capsys):
    config = write_config(tmp_path)
    monkeypatch.setattr(script, "setup_logger", lambda *args, **kwargs: None)
    texts = []
    for num in (0, 2):
        path = tmp_path / f"{num}.json"
        words = ["estimate_prior.py", "--config-file", config, "--num-workers", num]
        code, out, _ = call_main(script, [*words, "--output", path], monkeypatch, capsys)
        assert code == 0 and f"Written to {path}" in out
        prior = json.loads(path.read_text())["prior"]
        assert f"To set it by hand, in any trainer: model.prior={prior:.6g}\n" in out
        texts.append(path.read_text())
    assert texts[0] == texts[1]
    words = ["estimate_prior.py", "--config-file", config, "--num-workers", "-1"]
    code, _, err = call_main(script, words, monkeypatch, capsys)
    assert code == 2 and "num_workers=-1: give a whole number" in only_error(err)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", DETECTORS)
def test_a_model_on_a_gpu_has_the_same_counts(dicts, name):
    model, mapper = DETECTORS[name](), mapper_of(*VIEWS)
    expected = count_anchors(model, dicts, mapper, progress=False)
    model = model.to("cuda")
    same(count_anchors(model, dicts, mapper, progress=False), expected)
    same(count_by_brute_force(model, dicts, mapper, progress=False), expected)
