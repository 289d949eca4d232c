"""The prior measured on a training loader: in trainings, and what stays as it was."""

import json
import random
from types import SimpleNamespace

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.data import build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import DefaultTrainer

import estimate_prior as tool
from helpers.default_cfg import cfg_of
from helpers.measured_count_cases import NAME, Corner, corner_function, first, replayable
from helpers.tiny import mapper_of, tiny_retinanet
from helpers.tiny_run import call_main, run, write_config
from sampling_free.config.load import load_config
from sampling_free.counting.estimate import PriorEstimate, dependencies, estimate_prior
from sampling_free.counting.measured_count import measure_counts
from sampling_free.data.loader import build_replayable_train_loader
from sampling_free.diagnosis.check import check_imbalance
from sampling_free.engine.prior_init import PriorInit
from sampling_free.utils.errors import BadInput

SHORT = {"max_images": 40, "progress": False}


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
import helpers.measured_count_cases as here
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
