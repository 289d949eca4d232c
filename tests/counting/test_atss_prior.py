"""The prior of ATSS and PAA, which is counted by ATSS' assignment without a network."""

import json

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import SimpleTrainer
from detectron2.structures import Boxes, Instances

from helpers.literal_points import atss_literal, square_anchors
from helpers.tiny import batch, log_lines, mapper_of, write_dicts
from helpers.tiny_points import CLASSES, SAMPLING_FREE, points_model
from sampling_free import ATSS, PAA, SamplingFreeATSS
from sampling_free.counting.assignment import assignment_of
from sampling_free.counting.count import count_anchors
from sampling_free.counting.estimate import dependencies
from sampling_free.engine.prior_init import PriorInit

SIZES = [(64, 96), (61, 47), (50, 133), (96, 64), (33, 65)]  # most are no multiples of 32
NUMS = [4, 1, 6, 0, 3]
NAME = "test_atss_prior_train"


def _brute_force(dicts, recipes=((),), topk=9, side=8.0):
    """(valid (L,), foreground (L,), per class (3,)): the mean over recipes without randomness."""
    valid, foreground, per_class = np.zeros(5), np.zeros(5), np.zeros(3)
    for recipe in recipes:
        mapper = mapper_of(*recipe)
        for record in dicts:
            mapped = mapper(record)
            levels = square_anchors(mapped["image"].shape[1:], side=side)
            boxes = mapped["instances"].gt_boxes.tensor.double().numpy()
            objects = atss_literal(levels, boxes, topk)
            parts = np.split(objects, np.cumsum([len(x) for x in levels])[:-1])
            valid += [len(x) for x in parts]
            foreground += [(x >= 0).sum() for x in parts]
            for g in objects[objects >= 0]:
                per_class[mapped["instances"].gt_classes[g]] += 1
    return [x / len(recipes) for x in (valid, foreground, per_class)]


def _same(counts, expected):
    for found, wanted in zip(
        (counts.valid, counts.foreground, counts.foreground_per_class), expected
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert 0 < counts.foreground.sum() < counts.valid.sum()


@pytest.mark.parametrize(
    ("cls", "settings"),
    [*((cls, {}) for cls in CLASSES), (ATSS, {"topk": 3}), (PAA, {"anchor_size": 4.0})],
)
def test_counts_are_those_of_a_brute_force(tmp_path, cls, settings):
    dicts = write_dicts(tmp_path, SIZES, NUMS)
    counts = count_anchors(points_model(cls, **settings), dicts, mapper_of(), progress=False)
    topk, side = settings.get("topk", 9), settings.get("anchor_size", 8.0)
    _same(counts, _brute_force(dicts, topk=topk, side=side))
    assert (counts.num_images, counts.num_empty_images) == (5, 1)
    assert counts.strides == [8, 16, 32, 64, 128]


def test_flips_and_scales_are_counted_as_their_exact_mean(tmp_path):
    dicts = write_dicts(tmp_path, [(71, 93), (105, 62)], [5, 4], seed=3)
    recipes = [
        [T.ResizeShortestEdge([length] * 2, 110), T.RandomFlip(probability)]
        for length in (32, 57, 80)
        for probability in (0.0, 1.0)
    ]
    views = T.ResizeShortestEdge((32, 57, 80), 110, "choice"), T.RandomFlip(0.5)
    counts = count_anchors(points_model(ATSS), dicts, mapper_of(*views), progress=False)
    _same(counts, _brute_force(dicts, recipes))


def _started(model, dicts, folder, **kwargs):
    """The model after the hook and no iteration."""
    hook = PriorInit(dicts, mapper_of(), NAME, output_dir=str(folder), **kwargs)
    trainer = SimpleTrainer(model, [batch(3, 2)], torch.optim.SGD(model.parameters(), lr=0.0))
    trainer.register_hooks([hook])
    with log_lines() as lines:
        trainer.train(0, 0)
    return lines


@pytest.mark.parametrize("cls", SAMPLING_FREE)
def test_the_hook_sets_the_prior_of_the_brute_force(tmp_path, cls):
    MetadataCatalog.get(NAME).set(thing_classes=["ant", "bee", "cat"])
    dicts = write_dicts(tmp_path, SIZES, NUMS)
    valid, foreground, _ = _brute_force(dicts)
    prior = foreground.sum() / (3 * valid.sum())
    model = points_model(cls, prior="auto")
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    _started(model, dicts, tmp_path / "out")
    assert model.prior == pytest.approx(prior)
    scores = model.head.cls_score.bias.sigmoid().tolist()
    assert scores == pytest.approx([prior] * 3, rel=1e-5)
    assert json.loads((tmp_path / "out" / "prior.json").read_text())["prior"] == model.prior
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key]) != (key == "head.cls_score.bias")


@pytest.mark.parametrize("cls", SAMPLING_FREE)
def test_a_prior_for_each_class_is_that_of_the_brute_force(tmp_path, cls):
    MetadataCatalog.get(NAME).set(thing_classes=["ant", "bee", "cat"])
    dicts = write_dicts(tmp_path, SIZES, NUMS)
    valid, _, per_class = _brute_force(dicts)
    model = points_model(cls, prior="per_class", test_score_thresh="per_class")
    _started(model, dicts, tmp_path / "out")
    thetas = (per_class.clip(min=1) / valid.sum()).tolist()
    assert model.head.cls_score.bias.sigmoid().tolist() == pytest.approx(thetas, rel=1e-5)
    assert model.test_score_thresh.tolist() == pytest.approx(thetas, rel=1e-5)


def test_the_labels_of_training_are_those_that_were_counted(tmp_path):
    model, assignment = points_model(SamplingFreeATSS), assignment_of(points_model(ATSS))
    levels = [Boxes(torch.from_numpy(x).float()) for x in square_anchors((64, 96))]
    for seed in range(3):
        instances = batch(5, seed=seed)[0]["instances"]
        labels, _ = model.label_anchors(levels, [instances])
        assert torch.equal(assignment.labels_and_boxes(levels, instances)[0], labels[0])
    empty = Instances((64, 96), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0).long())
    assert (assignment.labels_and_boxes(levels, empty)[0] == 3).all()


@pytest.mark.parametrize("cls", CLASSES)
def test_an_estimate_depends_on_the_anchors_and_their_candidates_and_no_more(tmp_path, cls):
    dicts = write_dicts(tmp_path, SIZES[:1], [2])

    def record(**settings):
        return dependencies(points_model(cls, **settings), dicts, mapper_of(), "a set")

    before = record()
    changed = {
        "topk": dict(topk=5),
        "anchors": dict(anchor_size=4.0),
        "weights": dict(seed=4, box_loss_weight=7.0, test_score_thresh=0.3),
    }
    keys = {
        name: {k for k in before if before[k] != record(**settings)[k]}
        for name, settings in changed.items()
    }
    assert keys == {"topk": {"candidates of a level"}, "anchors": {"anchors"}, "weights": set()}
    json.dumps(before)
