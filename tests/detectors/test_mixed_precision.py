"""Every detector in float16 and bfloat16: small priors, gradients, r, empty batches, evaluation.

    b  the bias of the classifier at a prior of 1e-7

On a CPU float16's products are those of half_products.py; on a GPU they are the GPU's.
"""

import math
from typing import NamedTuple

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from helpers.mixed_precision_cases import (
    DENSE,
    DETECTORS,
    PRIOR,
    each_detector,
    each_dtype,
    inputs,
    rcnn,
    train,
)
from helpers.precision_runs import DEVICE
from helpers.tiny_detectors import ROI_HEADS
from sampling_free import (
    SamplingFreeRPN,
)
from sampling_free.config.load import DTYPES
from sampling_free.method.prior import (
    bias_to_prior,
    prior_to_bias,
    softmax_prior_to_bias,
    start_loss,
)

NUM_CLASSES = 3


STEPS_OF_SCALER = 6  # within which float16's scale has come down from 65536


each_dense = pytest.mark.parametrize("name", DENSE)


def rounded(value, dtype):
    """A number as ``dtype`` holds it."""
    return torch.tensor(value, dtype=torch.float64).to(DTYPES[dtype]).item()


def half_ulp(value, dtype):
    """The most that rounding changes a number of that size."""
    return torch.finfo(DTYPES[dtype]).eps / 2 * 2 ** math.floor(math.log2(abs(value)))


def dense_head(model):
    return getattr(model, "proposal_generator", model)


def predictors(model):
    found = model.roi_heads.box_predictor
    return list(found) if isinstance(found, nn.ModuleList) else [found]


class Seen(NamedTuple):
    """What a dense detector's ``losses`` got: logits of each level, and labels (N, R)."""

    logits: list
    labels: torch.Tensor


def watch(head):
    """Keeps what ``losses`` of a head gets, and the gradient of the logits, for the last step."""
    seen, losses = [], head.losses

    def watched(anchors, logits, labels, *args):
        for x in logits:
            x.retain_grad()
        seen[:] = [Seen(logits, torch.stack(labels))]
        return losses(anchors, logits, labels, *args)

    head.losses = watched
    return seen


def counted(head, labels):
    """N_f, N and C of a batch."""
    num_classes = 1 if isinstance(head, SamplingFreeRPN) else head.num_classes
    is_foreground = labels == 1 if num_classes == 1 else (labels >= 0) & (labels < num_classes)
    return is_foreground.sum().item(), (labels >= 0).sum().item(), num_classes


def raw_loss(latest):
    return latest.get("guide/loss_cls_raw", latest.get("guide/rpn/loss_cls_raw"))


def ratio(latest):
    return latest.get("guide/r", latest.get("guide/rpn/r"))


@each_dense
@each_dtype
def test_the_start_loss_is_that_of_the_rounded_bias(name, dtype):
    model = DETECTORS[name]().to(DEVICE)
    head = dense_head(model)
    seen = watch(head)
    layer = head.get_submodule(head.classifier_bias_name.rpartition(".")[0])
    nn.init.zeros_(layer.weight)  # all logits are b
    _, latest = train(model, dtype, [inputs(name, 3, 2)])
    ((logits, labels),) = seen
    bias = rounded(prior_to_bias(PRIOR), dtype)
    assert all((x == bias).all() for x in logits)
    counts = counted(head, labels)
    expected = start_loss(bias_to_prior(bias), *counts)
    assert raw_loss(latest) == pytest.approx(expected, rel=1e-6)
    # It has to come close to the loss of the prior itself, as 16 of its 16.1 nats are -log(prior).
    limit = half_ulp(bias, dtype)
    assert raw_loss(latest) == pytest.approx(start_loss(PRIOR, *counts), abs=1.01 * limit)


@each_dense
@each_dtype
def test_the_gradient_of_every_score_survives(name, dtype):
    model = DETECTORS[name]().to(DEVICE)
    head = dense_head(model)
    seen = watch(head)
    trainer, latest = train(model, dtype, [inputs(name, 3, 2)] * STEPS_OF_SCALER)
    ((logits, labels),) = seen
    num_foreground, _, num_classes = counted(head, labels)
    # Autograd leaves them as they came: scaled. The optimizer's have been divided by that.
    scale = trainer.grad_scaler.get_scale()
    factor = scale * ratio(latest) / num_foreground
    gradients = torch.cat([x.grad.flatten() for x in logits]).double()
    scores = torch.cat([x.flatten() for x in logits]).double().sigmoid()
    taking_part = gradients != 0
    share = (labels >= 0).double().mean().item()
    assert taking_part.double().mean().item() == pytest.approx(share, abs=1e-9)
    pushed_down = gradients > 0
    info = torch.finfo(DTYPES[dtype])
    torch.testing.assert_close(
        gradients[pushed_down],
        (factor * scores)[pushed_down],
        rtol=2 * info.eps,
        atol=info.smallest_normal * info.eps,  # the step of the smallest numbers
    )
    assert (gradients < 0).sum().item() == num_foreground


@each_dense
@each_dtype
def test_gradients_are_those_of_full_precision(name, dtype):
    gradients = []
    for precision in (None, dtype):
        model = DENSE[name]().to(DEVICE)
        train(model, precision, [inputs(name, 3, 2)] * STEPS_OF_SCALER)
        gradients.append({k: p.grad for k, p in model.named_parameters()})
        head = dense_head(model)
        must = [head.classifier_bias, *model.backbone.bottom_up.parameters()]
        assert all(p.grad.abs().max() > 0 for p in must)
        assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    full, mixed = (torch.cat([x.flatten() for x in found.values()]) for found in gradients)
    # PAA chooses its foreground by losses, of which some are alike after rounding.
    limit = 0.05 if name == "paa" else 2 * torch.finfo(DTYPES[dtype]).eps
    assert (full - mixed).norm() <= limit * full.norm()


@pytest.mark.parametrize("kind", ROI_HEADS)
@each_dtype
def test_the_start_loss_of_a_box_head_is_that_of_the_rounded_bias(kind, dtype):
    model = rcnn(kind).to(DEVICE)
    bias = rounded(softmax_prior_to_bias(PRIOR, NUM_CLASSES), dtype)
    seen = {}
    for stage, predictor in enumerate(predictors(model)):
        nn.init.zeros_(predictor.cls_score.weight)

        def losses(predictions, proposals, stage=stage, predictor=predictor):
            labels = torch.cat([p.gt_classes for p in proposals])
            seen[stage] = ((labels < NUM_CLASSES).sum().item(), len(labels))
            return type(predictor).losses(predictor, predictions, proposals)

        predictor.losses = losses
    _, latest = train(model, dtype, [inputs(kind, 3, 2)])
    stages = kind.startswith("cascade")
    for stage, (num_foreground, num) in seen.items():
        key = f"stage{stage}/" * stages + "guide/roi/loss_cls_raw"
        # log(3 + e^b) of each row, less b where the background is right.
        expected = num_foreground * bias + num * math.log1p(NUM_CLASSES * math.exp(-bias))
        assert latest[key] == pytest.approx(expected / num_foreground, rel=1e-5)
    assert len(seen) == (3 if stages else 1)


@each_detector
@each_dtype
def test_the_bias_stays_in_float32_in_the_checkpoint_too(name, dtype, tmp_path):
    model = DETECTORS[name]().to(DEVICE)
    trainer, _ = train(model, dtype, [inputs(name, 3, 2)] * STEPS_OF_SCALER)
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    weights = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    assert {x.dtype for x in weights.values() if x.is_floating_point()} == {torch.float32}
    head, prefix = dense_head(model), "proposal_generator." * (dense_head(model) is not model)
    stored = weights[prefix + head.classifier_bias_name]
    assert (stored == torch.tensor(prior_to_bias(PRIOR))).all()  # the learning rate is 0
    optimizer = trainer.state_dict()["optimizer"]["state"]
    buffers = [x for state in optimizer.values() for x in state.values() if torch.is_tensor(x)]
    assert {x.dtype for x in buffers} == {torch.float32}
