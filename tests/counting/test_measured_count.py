"""The prior is that of what the training loader gives, whoever made the loader."""

import copy
import json
import random
from types import SimpleNamespace

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.engine import DefaultTrainer, SimpleTrainer
from fvcore.transforms.transform import CropTransform

import estimate_prior as tool
from helpers.default_cfg import cfg_of
from helpers.tiny import batch, log_lines, mapper_of, tiny_retinanet, write_dicts
from helpers.tiny_detectors import tiny_fcos, tiny_rcnn
from helpers.tiny_run import call_main, run, write_config
from sampling_free.config.load import load_config
from sampling_free.counting import measured_count as measured_counts
from sampling_free.counting.estimate import PriorEstimate, dependencies, estimate_prior
from sampling_free.counting.measured_count import measure_counts, source_of
from sampling_free.data.loader import ReadOrName, build_replayable_train_loader
from sampling_free.diagnosis.check import check_imbalance
from sampling_free.engine.prior_init import PriorInit
from sampling_free.utils.errors import BadInput

NAME = "test_measured_counts_train"
SHORT = {"max_images": 40, "progress": False}


class Corner(T.Augmentation):
    """Cuts out a corner, which only its author knows."""

    def get_transform(self, image):
        height, width = image.shape[:2]
        return CropTransform(0, 0, width // 2, height // 2)


class CornerMapper(DatasetMapper):
    """As its base, but what its list of augmentations does not say."""

    def __call__(self, record):
        mapped = super().__call__(record)
        top = mapped["image"][:, :32, :32]
        instances = mapped["instances"]
        instances.gt_boxes.clip((32, 32))
        kept = instances[instances.gt_boxes.nonempty()]
        kept._image_size = (32, 32)
        return {**mapped, "image": top, "instances": kept}


def corner_mapper():
    return CornerMapper(is_train=True, augmentations=[], image_format="BGR")


def corner_function(record):
    return corner_mapper()(copy.deepcopy(record))


@pytest.fixture
def dicts(tmp_path):
    MetadataCatalog.get(NAME).set(thing_classes=["ant", "bee", "cat"])
    folder = tmp_path / "images"
    folder.mkdir()
    return write_dicts(folder, [(64, 96), (61, 47), (80, 64), (64, 64)], [4, 6, 0, 2])


def replayable(dicts, mapper, **kwargs):
    return build_replayable_train_loader(dicts, mapper=mapper, total_batch_size=2, **kwargs)


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


def first(loader, num):
    return [x for x, _ in zip(loader, range(num))]


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


class OwnLoader(DefaultTrainer):
    """As Detectron2's documentation has it."""

    mapper = None

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=cls.mapper)


class TestDefaultTrainer:
    def prior(self, registered, tmp_path, mapper):
        cfg = cfg_of("retinanet", registered, tmp_path / "out")
        trainer = type("Trainer", (OwnLoader,), {"mapper": staticmethod(mapper)})(cfg)
        trainer.register_hooks([PriorInit(cfg)])
        trainer.resume_or_load(resume=False)
        trainer.train()
        return trainer.model, json.loads((tmp_path / "out" / "prior.json").read_text())

    def test_a_mapper_with_other_augmentations_is_counted_with_them(self, registered, tmp_path):
        mapper = mapper_of(T.Resize((128, 160)))
        model, record = self.prior(registered, tmp_path, mapper)
        assert record["standard_error"] == 0
        assert "Resize(" in record["depends_on"]["augmentations"][0]
        assert record["prior"] == model.prior

    def test_a_function_is_measured(self, registered, tmp_path):
        def function(record):
            return mapper_of(T.Resize((128, 160)))(record)

        _, counted = self.prior(registered, tmp_path, mapper_of(T.Resize((128, 160))))
        _, measured = self.prior(registered, tmp_path, function)
        assert measured["standard_error"] > 0
        assert measured["prior"] == pytest.approx(counted["prior"], rel=0.1)


class TestNothingElseChanges:
    @pytest.mark.parametrize("num_workers", [0, 1])
    @pytest.mark.parametrize("ours", [True, False])
    def test_the_training_gets_the_batches_that_it_would_have_got(self, dicts, ours, num_workers):
        def make():
            if ours:
                return replayable(dicts, corner_function, num_workers=num_workers)
            return build_detection_train_loader(
                dicts,
                mapper=corner_function,
                sampler=TrainingSampler(4, seed=3),
                total_batch_size=2,
                num_workers=num_workers,
            )

        loader, fresh = make(), make()
        # An odd number of images, so that one waits for another of its shape.
        measure_counts(tiny_retinanet(), loader, max_images=5, progress=False)
        for found, expected in zip(first(loader, 4), first(fresh, 4)):
            names = [x["file_name"] for x in expected]
            assert [x["file_name"] for x in found] == names
            assert all(torch.equal(a["image"], b["image"]) for a, b in zip(found, expected))

    def test_the_global_random_generators_stay(self, dicts):
        def draws(record):
            random.random(), np.random.rand(), torch.rand(1)
            return corner_function(record)

        model, loader = tiny_retinanet(), replayable(dicts, draws)
        states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
        measure_counts(model, loader, max_images=20, progress=False)
        assert random.getstate() == states[0] and (np.random.get_state()[1] == states[1]).all()
        assert torch.equal(torch.get_rng_state(), states[2])

    def test_twice_is_the_same(self, dicts):
        def measured():
            loader = replayable(dicts, mapper_of(Corner(), T.RandomCrop("absolute", (24, 24))))
            return measure_counts(tiny_retinanet(), loader, **SHORT).foreground.tolist()

        assert measured() == measured()


def _one_of_two(rank, dicts, folder):
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    answers = []
    for mapper in (corner_function, _broken):
        loader = build_replayable_train_loader(dicts, mapper=mapper, total_batch_size=4)
        try:
            counts = measure_counts(tiny_retinanet(), loader, **SHORT)
            answers.append((counts.foreground.tolist(), counts.num_images, counts.standard_error))
        except BadInput as e:
            answers.append(str(e))
    torch.save(answers, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def _broken(record):
    raise BadInput("of one process alone" if torch.distributed.get_rank() else "of both")


def test_two_processes_measure_what_one_does(dicts, tmp_path):
    torch.multiprocessing.spawn(_one_of_two, (dicts, str(tmp_path)), nprocs=2)
    loader = build_replayable_train_loader(dicts, mapper=corner_function, total_batch_size=4)
    alone = measure_counts(tiny_retinanet(), loader, **SHORT)
    for rank in range(2):
        (foreground, num_images, error), line = torch.load(tmp_path / f"{rank}.pt")
        assert num_images == alone.num_images and error == pytest.approx(alone.standard_error, 0.1)
        # A batch is padded by each process for its own half.
        assert foreground == pytest.approx(alone.foreground.tolist(), rel=0.05)
        assert "of both" in line


class TestPriorFile:
    def test_it_is_read_for_the_loader_that_it_was_measured_on_and_no_other(self, dicts, tmp_path):
        loader, path = replayable(dicts, corner_function), tmp_path / "prior.json"
        model = tiny_retinanet()
        estimate_prior(model, dicts, None, NAME, loader=loader, progress=False).save(path)
        hook = PriorInit(dicts, None, NAME, prior_file=str(path), follow_loader=True)
        hook.trainer = SimpleNamespace(model=model, start_iter=0, data_loader=loader)
        hook.before_train()
        assert model.prior == PriorEstimate.load(path).prior
        now = dependencies(model, dicts, mapper_of(), NAME)
        with pytest.raises(BadInput, match="prior.json: stale.*estimate_prior"):
            PriorEstimate.load(path, now)


def test_batches_without_instances_are_refused_with_a_way_out():
    with pytest.raises(BadInput, match="'instances'.*set model.prior"):
        measure_counts(tiny_retinanet(), [[{"image": torch.zeros(3, 8, 8)}]], progress=False)


def test_without_a_loader_a_mapper_that_cannot_be_counted_is_refused(dicts):
    hook = PriorInit(dicts, corner_function, NAME)
    hook.trainer = SimpleNamespace(model=tiny_retinanet(), start_iter=0)
    with pytest.raises(BadInput, match="corner_function.*no training loader.*estimate_prior"):
        hook.before_train()


def test_an_image_that_the_mapper_leaves_out_is_none_of_a_batch(dicts):
    def some(record):
        return None if record["image_id"] == dicts[1]["image_id"] else corner_function(record)

    images = first(replayable(dicts, some, aspect_ratio_grouping=False), 6)
    assert {x["image_id"] for inputs in images for x in inputs} == {
        d["image_id"] for d in dicts if d is not dicts[1]
    }


CORNERS = """
import test_measured_count as here
dataloader.train.mapper = L(here.CornerMapper)(is_train=True, augmentations=[], image_format="BGR")
dataloader.test.mapper.image_format = "BGR"
"""


def test_the_tools_and_the_training_measure_the_same(tmp_path, monkeypatch, capsys):
    config = write_config(tmp_path, CORNERS)
    monkeypatch.setattr(tool, "setup_logger", lambda *args, **kwargs: None)
    words = ["estimate_prior.py", "--config-file", config, "--output", tmp_path / "tool.json"]
    code, out, _ = call_main(tool, words, monkeypatch, capsys)
    assert code == 0 and "as the mapper CornerMapper has its own way to read an image" in out
    model = run(config, "train.max_iter=1").model
    paths = tmp_path / "tool.json", tmp_path / "out" / "prior.json"
    record, trained = (json.loads(path.read_text()) for path in paths)
    assert record == trained and record["prior"] == model.prior
    assert f"model.prior={model.prior:.6g}" in out
    found = check_imbalance(load_config(config), max_images=8)
    assert found.estimate.num_images == 8 and found.estimate.standard_error > 0
