"""The prior is that of what the training loader gives, whoever made the loader."""

import copy
import json

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.engine import SimpleTrainer

from helpers.measured_count_cases import (
    NAME,
    Corner,
    corner_function,
    corner_mapper,
    first,
    replayable,
)
from helpers.tiny import batch, log_lines, mapper_of, tiny_retinanet
from helpers.tiny_detectors import tiny_fcos, tiny_rcnn
from sampling_free.counting import measured_count as measured_counts
from sampling_free.counting.estimate import estimate_prior
from sampling_free.counting.measured_count import measure_counts, source_of
from sampling_free.data.loader import ReadOrName
from sampling_free.engine.prior_init import PriorInit


def labels_of(model, inputs):
    """(R,) labels of each image of a batch, by the model's own training code."""
    features = model.backbone(model.preprocess_image(inputs).tensor)
    anchors = model.anchor_generator([features[f] for f in model.head_in_features])
    return model.label_anchors(anchors, [x["instances"] for x in inputs])[0]


def numbers(model, batches):
    """(n, 2) foreground and valid anchors of each image."""
    labels = [x for inputs in batches for x in labels_of(model, inputs)]
    return np.array([(int(((x >= 0) & (x < 3)).sum()), int((x >= 0).sum())) for x in labels], float)


def train(model, hook, loader):
    trainer = SimpleTrainer(model, loader, torch.optim.SGD(model.parameters(), lr=0.0))
    trainer.register_hooks([hook])
    trainer.train(0, 1)
    return hook.state_dict()["estimate"]


BATCHES = [batch(3, 2), batch(1, 0, size=(61, 47)), batch(0, 5, size=(90, 130))]


@pytest.mark.parametrize("build", [tiny_retinanet, tiny_fcos])
def test_counts_are_the_labels_of_the_batches_as_the_model_pads_them(build):
    mixed = [[batch(2)[0], batch(3, size=(33, 130))[0]], *BATCHES]
    model = build()
    counts = measure_counts(model, mixed, progress=False)
    expected = numbers(model, mixed)
    assert [counts.foreground.sum(), counts.valid.sum()] == expected.sum(axis=0).tolist()
    assert (counts.num_images, counts.num_empty_images) == (8, 2)
    assert counts.foreground_per_class.sum() == counts.foreground.sum()


def test_an_rpns_samples_are_no_subset(tmp_path):
    model = tiny_rcnn()
    counts = measure_counts(model, BATCHES, progress=False)
    rpn = copy.copy(model.proposal_generator)
    rpn._subsample_labels = lambda labels: labels
    num = 0
    for inputs in BATCHES:
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        anchors = rpn.anchor_generator([features[f] for f in rpn.in_features])
        labels, _ = rpn.label_and_sample_anchors(anchors, [x["instances"] for x in inputs])
        num += sum(int((x == 1).sum()) for x in labels)
    assert counts.foreground.sum() == num > 0


def test_the_standard_error_is_that_of_a_bootstrap_over_images():
    batches = [batch(*nums, seed=i) for i, nums in enumerate([(1, 4), (2, 6), (3, 0), (5, 2)] * 8)]
    model = tiny_retinanet()
    counts = measure_counts(model, batches, progress=False)
    rows = numbers(model, batches)
    assert counts.num_images == len(rows)
    draw = np.random.default_rng(0).integers(0, len(rows), (4000, len(rows)))
    foreground, valid = np.moveaxis(rows[draw].sum(axis=1), 1, 0)
    spread = (foreground / valid).std() / (rows[:, 0].sum() / rows[:, 1].sum())
    assert counts.standard_error == pytest.approx(spread, rel=0.1)


def test_it_stops_once_the_error_is_small_and_at_the_limit_else():
    def endless(*nums):
        while True:
            yield batch(*nums)

    alike = measure_counts(tiny_retinanet(), endless(4), progress=False)
    assert alike.num_images == measured_counts.LEAST_IMAGES
    assert alike.standard_error <= measured_counts.PRECISE
    unlike = measure_counts(tiny_retinanet(), endless(8, 0), max_images=70, progress=False)
    assert unlike.num_images == 70 and unlike.standard_error > measured_counts.PRECISE


class TestSource:
    """What is counted from annotations, and what is measured because of what."""

    VIEWS = T.ResizeShortestEdge((48, 48), 128), T.RandomFlip()

    @pytest.mark.parametrize("build", [replayable, None])
    def test_detectron2s_mapper_is_counted_in_both_loaders(self, dicts, build):
        mapper = mapper_of(*self.VIEWS)
        build = build or (
            lambda dicts, mapper: build_detection_train_loader(
                dicts, mapper=mapper, total_batch_size=2
            )
        )
        assert source_of(build(dicts, mapper), dicts) is mapper

    @pytest.mark.parametrize("grouping", [True, False])
    def test_detectron2s_loader_is_looked_into(self, dicts, grouping):
        def loader(mapper, **kwargs):
            return build_detection_train_loader(
                dicts,
                mapper=mapper,
                total_batch_size=2,
                aspect_ratio_grouping=grouping,
                num_workers=0,
                **kwargs,
            )

        mapper = mapper_of()
        assert source_of(loader(mapper), dicts) is mapper
        assert source_of(loader(ReadOrName(mapper)), dicts) is mapper
        assert "corner_function has its own way" in source_of(loader(corner_function), dicts)
        factors = torch.tensor([1.0, 2.0, 1.0, 1.0])
        repeating = loader(mapper, sampler=RepeatFactorTrainingSampler(factors))
        assert "RepeatFactorTrainingSampler" in source_of(repeating, dicts)
        relabeled = copy.deepcopy(dicts)
        relabeled[3]["annotations"][0]["category_id"] += 1
        for others in (dicts[:3], relabeled):
            assert "not those of the data set" in source_of(loader(mapper), others)

    @pytest.mark.parametrize(
        "augmentations, name",
        [
            ([Corner()], "Corner"),
            ([T.RandomApply(Corner())], "Corner"),
            ([T.AugmentationList([T.RandomFlip(), Corner()])], "Corner"),
            ([T.RandomCrop_CategoryAreaConstraint("absolute", (8, 8))], "RandomCrop_Category"),
        ],
    )
    def test_an_augmentation_that_is_not_known_is_measured(self, dicts, augmentations, name):
        assert name in source_of(replayable(dicts, mapper_of(*augmentations)), dicts)

    def test_known_ones_are_counted(self, dicts):
        known = [
            T.RandomCrop("relative", (0.5, 0.5)),
            T.RandomApply(T.RandomBrightness(0.9, 1.1)),
            T.Resize((64, 64)),
            T.HFlipTransform(96),
            T.RandomRotation([-5, 5]),
        ]
        assert not isinstance(source_of(replayable(dicts, mapper_of(*known)), dicts), str)

    @pytest.mark.parametrize("loader", [BATCHES, iter(BATCHES)], ids=["list", "iterator"])
    def test_any_other_loader_is_measured(self, loader):
        assert "none of Detectron2's" in source_of(loader, [])


@pytest.mark.parametrize("mapper", [corner_mapper(), corner_function], ids=["class", "function"])
def test_a_mapper_of_ones_own_is_measured_through_it(dicts, mapper, tmp_path):
    model, loader = tiny_retinanet(), replayable(dicts, mapper)
    hook = PriorInit(dicts, mapper_of(), NAME, output_dir=str(tmp_path / "out"), follow_loader=True)
    with log_lines() as lines:
        estimate = train(model, hook, loader)
    rows = numbers(model, [[corner_function(x) for x in dicts]])
    truth = rows[:, 0].sum() / rows[:, 1].sum() / 3
    as_listed = estimate_prior(tiny_retinanet(), dicts, mapper_of(), progress=False).prior
    assert abs(as_listed / truth - 1) > 0.2
    # Each image is padded to the larger of its batch, which adds a little background.
    assert model.prior == pytest.approx(truth, rel=0.08)
    said = [x for x in lines if "measured on batches of the training loader" in x]
    assert len(said) == 1 and "orner" in said[0]
    record = json.loads((tmp_path / "out" / "prior.json").read_text())
    assert (
        record["prior"] == model.prior
        and 0 < record["standard_error"] == (estimate["standard_error"])
    )
    assert any("standard error of the prior" in x for x in lines)


def test_a_sampler_that_repeats_images_counts_them_as_often(dicts):
    factors = torch.tensor([4.0, 1.0, 1.0, 1.0])
    sampler = RepeatFactorTrainingSampler(factors, seed=0)
    loader = replayable(dicts, mapper_of(), sampler=sampler, aspect_ratio_grouping=False)
    model = tiny_retinanet()
    train(model, PriorInit(dicts, mapper_of(), NAME, follow_loader=True), loader)
    batches = first(loader, 300)
    rows = numbers(model, batches)
    assert model.prior == pytest.approx(rows[:, 0].sum() / rows[:, 1].sum() / 3, rel=0.06)
    once = estimate_prior(tiny_retinanet(), dicts, mapper_of(), progress=False).prior
    assert abs(once / model.prior - 1) > 0.06
