"""Fine-tuning of other R-CNNs and of dense detectors, and resuming."""

import math

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead

from helpers.fine_tuning import HEAD, PREDICTOR, RPN, assert_filled, bias, with_own_biases
from helpers.fine_tuning_cases import load, only, train
from helpers.tiny import (
    WIDTH,
    stock_retinanet,
    tiny_retinanet,
)
from helpers.tiny_detectors import stock_fcos, tiny_fcos, tiny_rcnn
from sampling_free import BadInput
from sampling_free.engine import prior_init


class TestOtherRCNNs:
    def test_a_mask_head_of_another_shape_touches_neither_bias(self, hook, tmp_path):
        keys = [RPN, PREDICTOR]
        source = with_own_biases(tiny_rcnn("mask", stock=True), *keys)
        shape = ShapeSpec(channels=WIDTH, width=4, height=4)
        other = MaskRCNNConvUpsampleHead(shape, num_classes=3, conv_dims=[6, 6])
        model = load(tiny_rcnn("mask", seed=5, mask_head=other), source, tmp_path)
        train(model, hook(), "mask")
        for key in keys:
            assert torch.equal(bias(model, key), bias(source, key))
        assert model.roi_heads.mask_head.predictor.weight.shape[1] == 6

    @pytest.mark.parametrize("kind", ["mask", "keypoint"])
    def test_a_head_that_the_checkpoint_has_not_touches_neither_bias(self, hook, tmp_path, kind):
        keys = [RPN, PREDICTOR]
        source = with_own_biases(tiny_rcnn("faster", stock=True), *keys)
        model = load(tiny_rcnn(kind, seed=5), source, tmp_path)
        train(model, hook(), kind)
        for key in keys:
            assert torch.equal(bias(model, key), bias(source, key))

    def test_mask_rcnn_of_another_class_count(self, hook, tmp_path):
        source = with_own_biases(tiny_rcnn("mask", 7, stock=True), RPN, PREDICTOR)
        model = tiny_rcnn("mask", seed=5, predictor={"softmax_prior": 0.05})
        train(load(model, source, tmp_path), hook(), "mask")
        assert torch.equal(bias(model, RPN), bias(source, RPN))
        scores = bias(model, PREDICTOR).softmax(dim=0)
        assert scores.tolist() == pytest.approx([0.05] * 3 + [0.85], rel=1e-5)

    @pytest.mark.parametrize("num_classes", [3, 7])
    def test_c4(self, hook, tmp_path, num_classes):
        source = with_own_biases(tiny_rcnn("c4", num_classes, stock=True), RPN, PREDICTOR)
        model = tiny_rcnn("c4", seed=5, predictor={"softmax_prior": 0.05})
        train(load(model, source, tmp_path), hook(), "c4")
        assert torch.equal(bias(model, RPN), bias(source, RPN))
        stays = torch.equal(bias(model, PREDICTOR), bias(source, PREDICTOR))
        assert stays == (num_classes == 3)

    STAGES = [f"roi_heads.box_predictor.{k}.cls_score.bias" for k in range(3)]

    @pytest.mark.parametrize("new", [(), (1,), (0, 1, 2)])
    def test_each_stage_of_a_cascade_is_judged_by_itself(self, hook, tmp_path, new):
        source = with_own_biases(tiny_rcnn("cascade", stock=True), RPN, *self.STAGES)
        model = tiny_rcnn("cascade", seed=5, predictor={"softmax_prior": 0.05})
        dropped = tuple(f"roi_heads.box_predictor.{k}." for k in new)
        load(model, source, tmp_path, drop=lambda key: key.startswith(dropped))
        lines = train(model, hook(), "cascade").lines
        assert torch.equal(bias(model, RPN), bias(source, RPN))
        for k, key in enumerate(self.STAGES):
            if k in new:
                scores = bias(model, key).softmax(dim=0)
                assert scores.tolist() == pytest.approx([0.05] * 3 + [0.85], rel=1e-5)
                only(lines, key, "is set")
            else:
                assert torch.equal(bias(model, key), bias(source, key))
                only(lines, key, "stays")

    def test_a_cascade_of_another_class_count(self, hook, tmp_path):
        source = with_own_biases(tiny_rcnn("cascade", 7, stock=True), RPN, *self.STAGES)
        model = tiny_rcnn("cascade", seed=5)
        train(load(model, source, tmp_path), hook(), "cascade")
        assert torch.equal(bias(model, RPN), bias(source, RPN))
        assert not any(bias(model, key).any() for key in self.STAGES)

    def test_a_cascade_from_faster_rcnn_has_three_new_predictors(self, hook, tmp_path):
        source = with_own_biases(tiny_rcnn("faster", stock=True), RPN, PREDICTOR)
        model = tiny_rcnn("cascade", seed=5, predictor={"softmax_prior": 0.05})
        train(load(model, source, tmp_path), hook(), "cascade")
        assert torch.equal(bias(model, RPN), bias(source, RPN))
        for key in self.STAGES:
            scores = bias(model, key).softmax(dim=0)
            assert scores.tolist() == pytest.approx([0.05] * 3 + [0.85], rel=1e-5)

    def test_a_stock_rcnn_is_left_alone(self, hook, tmp_path, monkeypatch):
        monkeypatch.setattr(prior_init, "count_anchors", None)
        model, hook = tiny_rcnn("mask", stock=True), hook()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        lines = train(model, hook, "mask").lines
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert lines == [] and hook.state_dict() == {} and not (tmp_path / "out").exists()


DENSE = {"retinanet": (stock_retinanet, tiny_retinanet), "fcos": (stock_fcos, tiny_fcos)}


class TestDenseDetectors:
    def _measured(self, make, dicts, mapper):
        """(prior, bias) by the labels of Detectron2's own class."""
        model, num_foreground, num_valid = make(), 0, 0
        for record in dicts:
            mapped = mapper(record)
            features = model.backbone(model.preprocess_image([mapped]).tensor)
            anchors = model.anchor_generator([features[f] for f in model.head_in_features])
            labels, _ = model.label_anchors(anchors, [mapped["instances"]])
            num_valid += (labels[0] >= 0).sum().item()
            num_foreground += ((labels[0] >= 0) & (labels[0] < 3)).sum().item()
        prior = num_foreground / (3 * num_valid)
        return prior, math.log(prior / (1 - prior))

    @pytest.mark.parametrize("num_classes", [1, 7])
    @pytest.mark.parametrize("name", DENSE)
    def test_another_class_count_starts_from_the_prior(
        self, hook, dicts, mapper, tmp_path, name, num_classes
    ):
        make_stock, make = DENSE[name]
        source = with_own_biases(make_stock(num_classes=num_classes), HEAD)
        model = load(make(seed=5), source, tmp_path)
        lines = train(model, hook()).lines
        prior, expected = self._measured(make_stock, dicts, mapper)
        assert_filled(bias(model, HEAD), expected)
        assert model.prior == pytest.approx(prior, rel=1e-9)
        only(lines, HEAD, f"is set to {expected:.4f}")
        stays = [k for k in model.state_dict() if "cls_score" not in k]
        assert len(stays) > 10
        for key in stays:
            assert torch.equal(model.state_dict()[key], source.state_dict()[key]), key

    @pytest.mark.parametrize("name", DENSE)
    def test_the_same_class_count_stays_and_reset_prior_resets_it(
        self, hook, dicts, mapper, tmp_path, name
    ):
        make_stock, make = DENSE[name]
        source = with_own_biases(make_stock(), HEAD)
        model = load(make(seed=5), source, tmp_path)
        lines = train(model, hook()).lines
        assert torch.equal(bias(model, HEAD), bias(source, HEAD))
        prior, expected = self._measured(make_stock, dicts, mapper)
        only(lines, HEAD, "stays", f"the prior is {prior:.3e}")
        model = load(make(seed=5), source, tmp_path)
        train(model, hook(reset_prior=True))
        assert_filled(bias(model, HEAD), expected)


class TestResume:
    @pytest.mark.parametrize("kind", ["faster", "cascade"])
    def test_the_rpns_prior_comes_with_the_checkpoint_and_no_bias_is_set(
        self, hook, tmp_path, monkeypatch, kind
    ):
        predictor = {"softmax_prior": 0.05}
        old, its_hook = tiny_rcnn(kind, predictor=predictor), hook()
        trainer = train(old, its_hook, kind, lr=0.05)
        DetectionCheckpointer(old, str(tmp_path), trainer=trainer, prior=its_hook).save("model")
        (tmp_path / "out" / "prior.json").unlink()
        monkeypatch.setattr(prior_init, "count_anchors", None)  # a call would fail
        model, its_hook = tiny_rcnn(kind, seed=9, predictor=predictor), hook()
        DetectionCheckpointer(model, str(tmp_path), prior=its_hook).resume_or_load("", resume=True)
        assert model.proposal_generator.prior == "auto"
        lines = train(model, its_hook, kind, start_iter=1).lines
        assert lines == [] and not (tmp_path / "out" / "prior.json").exists()
        assert model.proposal_generator.prior == old.proposal_generator.prior
        for key, value in old.state_dict().items():
            assert torch.equal(model.state_dict()[key], value), key
        assert its_hook.state_dict()["estimate"]["num_classes"] == 1

    def test_without_a_prior_in_the_checkpoint_it_is_refused(self, hook):
        with pytest.raises(BadInput, match="no prior came with the checkpoint"):
            train(tiny_rcnn(), hook(), start_iter=5)
