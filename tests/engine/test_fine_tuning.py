"""Fine-tuning: what a checkpoint filled keeps its bias, what it did not fill starts anew."""

import math
from types import SimpleNamespace

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling.meta_arch import ProposalNetwork

from helpers.fine_tuning import HEAD, PREDICTOR, RPN, assert_filled, bias, with_own_biases
from helpers.fine_tuning_cases import NAME, load, only, train
from helpers.tiny import (
    batch,
    log_lines,
    mapper_of,
)
from helpers.tiny_detectors import PIXELS, stock_fcos, tiny_fcos, tiny_rcnn
from sampling_free import BadInput, PriorInit
from sampling_free.counting.estimate import PriorEstimate
from sampling_free.engine import prior_init


def measured(dicts, mapper, rpn=None):
    """(prior, bias) of an RPN: labels by Detectron2's, with a sample larger than all anchors."""
    everything = {"batch_size_per_image": 10**9, "positive_fraction": 1.0}
    model = tiny_rcnn(stock=True, rpn={**everything, **(rpn or {})})
    rpn, num_foreground, num_valid = model.proposal_generator, 0, 0
    for record in dicts:
        mapped = mapper(record)
        features = model.backbone(model.preprocess_image([mapped]).tensor)
        anchors = rpn.anchor_generator([features[f] for f in rpn.in_features])
        labels, _ = rpn.label_and_sample_anchors(anchors, [mapped["instances"]])
        num_foreground += (labels[0] == 1).sum().item()
        num_valid += (labels[0] >= 0).sum().item()
    return num_foreground / num_valid, math.log(num_foreground / (num_valid - num_foreground))


def mean_objectness(model, dicts, mapper):
    images = model.preprocess_image([mapper(record) for record in dicts]).tensor
    rpn = model.proposal_generator
    with torch.no_grad():
        features = model.eval().backbone(images)
        logits, _ = rpn.rpn_head([features[f] for f in rpn.in_features])
    return torch.cat([x.flatten() for x in logits]).double().sigmoid().mean().item()


class TestHalfALayer:
    """The checkpointer drops tensors one by one: a weight of another width, not its bias."""

    @pytest.mark.parametrize("kept", ["weight", "bias"])
    def test_the_rpns_counts_as_new(self, hook, dicts, mapper, tmp_path, kept):
        source = with_own_biases(tiny_rcnn(stock=True), RPN, PREDICTOR)
        dropped = RPN if kept == "weight" else RPN.replace("bias", "weight")
        model = load(tiny_rcnn(), source, tmp_path, drop=lambda key: key == dropped)
        train(model, hook())
        assert_filled(bias(model, RPN), measured(dicts, mapper)[1])
        assert torch.equal(bias(model, PREDICTOR), bias(source, PREDICTOR))

    def test_a_predictors_counts_as_new(self, hook, tmp_path):
        source = with_own_biases(tiny_rcnn(stock=True), RPN, PREDICTOR)
        model = tiny_rcnn(predictor={"softmax_prior": 0.1})
        weight = PREDICTOR.replace("bias", "weight")
        load(model, source, tmp_path, drop=lambda key: key == weight)
        train(model, hook())
        scores = bias(model, PREDICTOR).softmax(dim=0)
        assert scores.tolist() == pytest.approx([0.1, 0.1, 0.1, 0.7], rel=1e-5)


def test_a_proposal_network_is_compared_too(hook, dicts, mapper, tmp_path):
    def network(model):
        return ProposalNetwork(
            backbone=model.backbone, proposal_generator=model.proposal_generator, **PIXELS
        )

    source = with_own_biases(tiny_rcnn(stock=True), RPN)
    model = load(network(tiny_rcnn()), network(source), tmp_path)
    lines = train(model, hook()).lines
    mean = mean_objectness(source, dicts, mapper)
    assert f"mean score is {mean:.3e}" in only(lines, RPN, "came with the checkpoint and stays")


def test_a_second_call_of_train_leaves_what_was_trained(hook, tmp_path):
    model, hook = tiny_rcnn(), hook()
    trainer = train(model, hook, lr=0.05)
    trained = bias(model, RPN)
    trainer.train(0, 0)  # the hooks alone
    assert torch.equal(bias(model, RPN), trained)
    assert hook.state_dict()["prior"] == model.proposal_generator.prior


def test_comparing_a_loaded_head_leaves_frozen_parts_frozen(hook, tmp_path):
    source = with_own_biases(tiny_rcnn(stock=True), RPN)
    model = load(tiny_rcnn(), source, tmp_path)
    model.train()
    model.backbone.eval()
    hook = hook()
    hook.trainer = SimpleNamespace(model=model, start_iter=0)
    hook.before_train()
    assert not any(m.training for m in model.backbone.modules())
    assert model.training and model.proposal_generator.rpn_head.training


class TestFasterRCNN:
    def _source(self, num_classes=3, kind="faster", **kwargs):
        keys = [RPN, PREDICTOR]
        return with_own_biases(tiny_rcnn(kind, num_classes, stock=True, **kwargs), *keys)

    def _assert_the_rpn_was_compared(self, lines, source, dicts, mapper):
        prior, _ = measured(dicts, mapper)
        mean = mean_objectness(source, dicts, mapper)
        line = only(lines, RPN, "came with the checkpoint and stays")
        assert f"mean score is {mean:.3e}" in line and f"the prior is {prior:.3e}" in line

    def test_all_that_a_checkpoint_of_the_same_classes_fills_stays(
        self, hook, dicts, mapper, tmp_path
    ):
        source = self._source()
        model = load(tiny_rcnn(seed=5), source, tmp_path)
        lines = train(model, hook()).lines
        for key, value in source.state_dict().items():
            assert torch.equal(model.state_dict()[key], value), key
        self._assert_the_rpn_was_compared(lines, source, dicts, mapper)
        only(lines, PREDICTOR, "came with the checkpoint and stays")
        assert model.proposal_generator.prior == pytest.approx(measured(dicts, mapper)[0])

    @pytest.mark.parametrize("softmax_prior", [None, 0.05])
    @pytest.mark.parametrize("num_classes", [1, 7])
    def test_another_class_count_makes_the_box_predictor_new_and_the_rpn_stays(
        self, hook, dicts, mapper, tmp_path, num_classes, softmax_prior
    ):
        source = self._source(num_classes)
        predictor = {"softmax_prior": softmax_prior}
        model = load(tiny_rcnn(seed=5, predictor=predictor), source, tmp_path)
        lines = train(model, hook()).lines
        assert torch.equal(bias(model, RPN), bias(source, RPN))
        self._assert_the_rpn_was_compared(lines, source, dicts, mapper)
        scores = bias(model, PREDICTOR).double().softmax(dim=0)
        if softmax_prior is None:
            assert not bias(model, PREDICTOR).any()
            only(lines, PREDICTOR, "is left as it is")
        else:
            assert scores.tolist() == pytest.approx([0.05] * 3 + [0.85], rel=1e-5)
            only(lines, PREDICTOR, "is set", "5.0000e-02")
        assert not any(PREDICTOR in line and "stays" in line for line in lines)

    def test_a_loaded_predictor_keeps_its_bias_though_a_softmax_prior_is_given(
        self, hook, tmp_path
    ):
        source = self._source()
        model = load(tiny_rcnn(seed=5, predictor={"softmax_prior": 0.05}), source, tmp_path)
        train(model, hook())
        assert torch.equal(bias(model, PREDICTOR), bias(source, PREDICTOR))

    def test_from_a_backbone_alone_both_start_anew(self, hook, dicts, mapper, tmp_path):
        source = self._source()
        model = tiny_rcnn(seed=5, predictor={"softmax_prior": 0.05})
        load(model, source, tmp_path, drop=lambda key: not key.startswith("backbone."))
        lines = train(model, hook()).lines
        prior, expected = measured(dicts, mapper)
        assert_filled(bias(model, RPN), expected)
        assert model.proposal_generator.prior == pytest.approx(prior)
        only(lines, RPN, f"is set to {expected:.4f}")
        scores = bias(model, PREDICTOR).softmax(dim=0)
        assert scores.tolist() == pytest.approx([0.05] * 3 + [0.85], rel=1e-5)
        assert not any("stays" in line for line in lines)
        stem = "backbone.bottom_up.stem.weight"
        assert torch.equal(model.state_dict()[stem], source.state_dict()[stem])

    def test_head_by_head_a_new_rpn_beside_a_loaded_predictor(self, hook, dicts, mapper, tmp_path):
        source = self._source()
        model = tiny_rcnn(seed=5)
        load(model, source, tmp_path, drop=lambda key: key.startswith("proposal_generator"))
        train(model, hook())
        assert_filled(bias(model, RPN), measured(dicts, mapper)[1])
        assert torch.equal(bias(model, PREDICTOR), bias(source, PREDICTOR))

    def test_an_rpn_of_other_anchors_is_new(self, hook, dicts, mapper, tmp_path):
        source = self._source()
        for name in ("objectness_logits", "anchor_deltas"):  # as of two aspect ratios
            layer = getattr(source.proposal_generator.rpn_head, name)
            layer.weight.data, layer.bias.data = (
                x.data[: len(x) * 2 // 3].clone() for x in (layer.weight, layer.bias)
            )
        model = load(tiny_rcnn(seed=5), source, tmp_path)
        train(model, hook())
        assert_filled(bias(model, RPN), measured(dicts, mapper)[1])

    @pytest.mark.parametrize("softmax_prior", [None, 0.05])
    @pytest.mark.parametrize("prior", ["auto", 0.02])
    def test_reset_prior_sets_the_bias_of_a_loaded_rpn(
        self, hook, dicts, mapper, tmp_path, prior, softmax_prior
    ):
        source = self._source()
        model = tiny_rcnn(seed=5, rpn={"prior": prior}, predictor={"softmax_prior": softmax_prior})
        load(model, source, tmp_path)
        lines = train(model, hook(reset_prior=True)).lines
        expected = measured(dicts, mapper)[1] if prior == "auto" else math.log(0.02 / 0.98)
        assert_filled(bias(model, RPN), expected)
        if softmax_prior is None:  # there is nothing to set it to
            assert torch.equal(bias(model, PREDICTOR), bias(source, PREDICTOR))
        else:
            scores = bias(model, PREDICTOR).softmax(dim=0)
            assert scores.tolist() == pytest.approx([0.05] * 3 + [0.85], rel=1e-5)
        assert not any("stays" in line for line in lines)

    def test_a_prior_as_a_number_is_compared_and_not_measured(
        self, hook, dicts, mapper, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(prior_init, "count_anchors", None)
        source = self._source(7)
        model = load(tiny_rcnn(seed=5, rpn={"prior": 0.02}), source, tmp_path)
        lines = train(model, hook()).lines
        assert torch.equal(bias(model, RPN), bias(source, RPN))
        mean = mean_objectness(source, dicts, mapper)
        only(lines, RPN, "stays", f"{mean:.3e}", "2.000e-02")
        assert model.proposal_generator.prior == 0.02

    def test_the_comparison_changes_nothing_but_the_log(self, dicts, tmp_path):
        source = with_own_biases(stock_fcos(norm="BN"), HEAD)
        model = load(tiny_fcos(norm="BN", seed=5), source, tmp_path).train()
        flipping = mapper_of(T.ResizeShortestEdge((48, 64), 128), T.RandomFlip())
        hook = PriorInit(dicts, flipping, NAME)
        hook.trainer = SimpleNamespace(model=model, start_iter=0)
        states = torch.get_rng_state(), np.random.get_state()[1].copy()
        with log_lines("sampling_free.engine.prior_init") as lines:
            hook.before_train()
        only(lines, HEAD, "stays")
        assert torch.equal(torch.get_rng_state(), states[0])
        assert (np.random.get_state()[1] == states[1]).all()
        assert all(m.training for m in model.modules())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        for key, value in source.state_dict().items():  # statistics of the normalization, too
            assert torch.equal(model.state_dict()[key], value), key

    def test_the_estimate_is_that_of_objects_against_background(
        self, hook, dicts, mapper, tmp_path
    ):
        model, hook = tiny_rcnn(), hook()
        train(model, hook)
        estimate = PriorEstimate.load(tmp_path / "out" / "prior.json")
        assert estimate.num_classes == 1 and list(estimate.per_class) == ["object"]
        assert estimate.prior == pytest.approx(measured(dicts, mapper)[0])
        assert hook.state_dict()["prior"] == estimate.prior == model.proposal_generator.prior

    def test_without_the_hook_training_is_refused(self):
        model = tiny_rcnn().train()
        trainer = SimpleTrainer(model, [batch(2)], torch.optim.SGD(model.parameters(), lr=0.1))
        with pytest.raises(BadInput, match="model.proposal_generator.prior.*'auto'.*PriorInit"):
            trainer.train(0, 1)
