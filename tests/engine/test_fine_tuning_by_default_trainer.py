"""PriorInit in Detectron2's own trainer, driven by a YAML config, from weights and from none."""

import json
import logging
import math
from types import SimpleNamespace

import detectron2.data.transforms as T
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer

from helpers.default_cfg import MODELS, cfg_of
from helpers.fine_tuning import HEAD, PREDICTOR, RPN, assert_filled, bias, with_own_biases
from helpers.tiny import mapper_of
from sampling_free import PriorInit
from sampling_free.engine import prior_init

# Detectron2's own trainer, driven by a YAML config


class WithPrior(DefaultTrainer):
    """As the documentation of Detectron2 has a trainer of one's own."""

    def build_hooks(self):
        return [*super().build_hooks(), PriorInit(self.cfg)]


def bias_of(kind, model):
    return bias(model, HEAD if kind == "retinanet" else RPN)


def sampling_free_head(kind, model):
    return model if kind == "retinanet" else model.proposal_generator


def prior_by_stock(kind, cfg, dicts):
    """By the labels of Detectron2's class over both flips of each image."""
    cfg = cfg.clone()
    mapper = mapper_of(T.ResizeShortestEdge((48, 48), 128))
    flipping = mapper_of(T.ResizeShortestEdge((48, 48), 128), T.RandomFlip(prob=1.0))
    cfg.MODEL.PROPOSAL_GENERATOR.NAME, cfg.MODEL.ROI_HEADS.NAME = "RPN", "StandardROIHeads"
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE, cfg.MODEL.RPN.POSITIVE_FRACTION = 10**9, 1.0
    if kind == "retinanet":
        cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    model = DefaultTrainer.build_model(cfg).eval()
    num_foreground = num_valid = 0
    for record in dicts:
        for mapped in (mapper(record), flipping(record)):
            features = model.backbone(model.preprocess_image([mapped]).tensor)
            if kind == "retinanet":
                features = [features[f] for f in model.head_in_features]
                anchors = model.anchor_generator(features)
                labels, _ = model.label_anchors(anchors, [mapped["instances"]])
                foreground = (labels[0] >= 0) & (labels[0] < 3)
            else:
                rpn = model.proposal_generator
                anchors = rpn.anchor_generator([features[f] for f in rpn.in_features])
                labels, _ = rpn.label_and_sample_anchors(anchors, [mapped["instances"]])
                foreground = labels[0] == 1
            num_foreground += foreground.sum().item()
            num_valid += (labels[0] >= 0).sum().item()
    return num_foreground / (num_valid * (3 if kind == "retinanet" else 1))


@pytest.fixture
def quiet():
    """DefaultTrainer sets up Detectron2's logger for good."""
    logger = logging.getLogger("detectron2")
    state = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = state


@pytest.mark.usefixtures("quiet")
class TestDefaultTrainer:
    @pytest.mark.parametrize("kind", MODELS)
    def test_it_starts_from_the_measured_prior_and_resumes_without_measuring(
        self, kind, registered, tmp_path, monkeypatch
    ):
        cfg = cfg_of(kind, registered, tmp_path / "out")
        prior = prior_by_stock(kind, cfg, DatasetCatalog.get(registered))
        trainer = WithPrior(cfg)
        trainer.resume_or_load(resume=True)
        starts = []
        step = trainer.run_step

        def noting_step():
            starts.append(bias_of(kind, trainer.model))
            step()

        monkeypatch.setattr(trainer, "run_step", noting_step)
        trainer.train()
        head = sampling_free_head(kind, trainer.model)
        assert head.prior == pytest.approx(prior, rel=1e-9)
        assert_filled(starts[0], math.log(prior / (1 - prior)))
        assert not torch.equal(starts[1], starts[0])
        record = json.loads((tmp_path / "out" / "prior.json").read_text())
        assert record["prior"] == head.prior and record["num_images"] == 3
        metrics = (tmp_path / "out" / "metrics.json").read_text()
        assert '"guide/r"' in metrics if kind == "retinanet" else '"guide/rpn/r"' in metrics

        monkeypatch.setattr(prior_init, "count_anchors", None)
        (tmp_path / "out" / "prior.json").unlink()
        cfg.SOLVER.MAX_ITER = 3
        resumed = WithPrior(cfg)
        resumed.resume_or_load(resume=True)
        assert resumed.start_iter == 2
        assert torch.equal(bias_of(kind, resumed.model), bias_of(kind, trainer.model))
        resumed.train()
        assert sampling_free_head(kind, resumed.model).prior == head.prior
        assert not (tmp_path / "out" / "prior.json").exists()

    def test_from_the_end_of_another_run_the_rpn_stays_and_is_measured_anew(
        self, registered, tmp_path
    ):
        cfg = cfg_of("faster", registered, tmp_path / "first")
        source = DefaultTrainer.build_model(cfg)
        with_own_biases(source, RPN, PREDICTOR)
        DetectionCheckpointer(source, cfg.OUTPUT_DIR).save("model_final")
        cfg = cfg_of("faster", registered, tmp_path / "second")
        cfg.MODEL.WEIGHTS = str(tmp_path / "first" / "model_final.pth")
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
        cfg.MODEL.SAMPLING_FREE.SOFTMAX_PRIOR = 0.05
        cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER = 0.0, 1
        trainer = WithPrior(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()
        assert torch.equal(bias(trainer.model, RPN), bias(source, RPN))
        scores = bias(trainer.model, PREDICTOR).softmax(dim=0)
        assert scores.tolist() == pytest.approx([0.05] * 5 + [0.75], rel=1e-5)
        record = json.loads((tmp_path / "second" / "prior.json").read_text())
        assert record["prior"] == trainer.model.proposal_generator.prior


class TestFromCfgNode:
    def test_it_has_the_mapper_the_set_and_the_folder_of_the_config(self, registered, tmp_path):
        cfg = cfg_of("faster", registered, tmp_path / "out")
        hook = PriorInit(cfg)
        assert [x["file_name"] for x in hook.dataset_dicts] == [
            x["file_name"] for x in DatasetCatalog.get(registered)
        ]
        assert hook.output_dir == cfg.OUTPUT_DIR and list(hook.names) == [registered]
        assert hook.mapper.is_train and not hook.reset_prior and hook.prior_file == ""
        resize, flip = hook.mapper.augmentations.augs
        assert set(resize.short_edge_length) == {48} and resize.max_size == 128
        assert isinstance(flip, T.RandomFlip)

    def test_keywords_go_past_the_config(self, registered, tmp_path):
        cfg = cfg_of("faster", registered, tmp_path / "out")
        hook = PriorInit(cfg, reset_prior=True, output_dir="")
        assert hook.reset_prior and hook.output_dir == ""

    @pytest.mark.parametrize("filter_empty", [True, False])
    def test_images_without_objects_are_left_out_as_in_training(
        self, registered, tmp_path, filter_empty
    ):
        DatasetCatalog.get(registered)[1]["annotations"].clear()
        cfg = cfg_of("faster", registered, tmp_path / "out")
        cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
        assert len(PriorInit(cfg).dataset_dicts) == 3 - filter_empty

    def test_a_fixed_prior_is_that_of_the_config(self, registered, tmp_path, monkeypatch):
        monkeypatch.setattr(prior_init, "count_anchors", None)
        cfg = cfg_of("faster", registered, tmp_path / "out")
        cfg.MODEL.SAMPLING_FREE.PRIOR = 0.004
        model = DefaultTrainer.build_model(cfg)
        hook = PriorInit(cfg)
        hook.trainer = SimpleNamespace(model=model, start_iter=0)
        hook.before_train()
        assert_filled(bias(model, RPN).sigmoid(), 0.004)
        assert hook.state_dict() == {"prior": 0.004, "estimate": None}
