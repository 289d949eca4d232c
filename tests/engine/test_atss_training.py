"""Training steps of ATSS and PAA, with focal loss and without."""

import pytest
import torch
from detectron2.structures import Boxes

from helpers.literal_points import square_anchors
from helpers.tiny import batch, train_step
from helpers.tiny_points import (
    CLASSES,
    KEYS,
    SAMPLING_FREE,
    atss_targets,
    check_losses,
    expected_losses,
    paa_targets,
    points_model,
    raw_outputs,
)
from sampling_free import ATSS, PAA, SamplingFreeATSS, SamplingFreePAA
from sampling_free.utils.errors import BadInput

INPUTS = {
    "some objects": lambda k: batch(3, 5, num_classes=k),
    "an empty image": lambda k: batch(4, 0, 2, num_classes=k),
    "one image": lambda k: batch(6, num_classes=k, size=(61, 83)),
}


def _from_raw_outputs(model, inputs):
    """The expected losses from the head's outputs, by the literal assignment."""
    levels = square_anchors((64, 96))
    raw = [torch.cat(x, dim=1) for x in raw_outputs(model, inputs)]
    if isinstance(model, PAA):
        labels, boxes = paa_targets(model, levels, inputs, *raw[:2])
    else:
        labels, boxes = atss_targets(model, levels, inputs)
    anchors = [a.tolist() for level in levels for a in level]
    return expected_losses(model, anchors, *raw, labels, boxes)


@pytest.mark.parametrize(
    ("name", "num_classes"),
    [("some objects", 3), ("some objects", 1), ("an empty image", 3), ("one image", 3)],
)
@pytest.mark.parametrize("cls", CLASSES)
def test_losses_are_those_computed_from_the_heads_raw_outputs(cls, name, num_classes):
    model = points_model(cls, num_classes=num_classes)
    inputs = INPUTS[name](num_classes)
    expected = _from_raw_outputs(model, inputs)
    losses, latest, gradients = train_step(model, inputs)
    assert expected[3] > 10
    check_losses(model, losses, latest, expected, num_images=len(inputs))
    for key, gradient in gradients.items():
        assert gradient.isfinite().all() and gradient.any(), key


@pytest.mark.parametrize("topk", [1, 4])
@pytest.mark.parametrize("cls", CLASSES)
def test_so_they_are_with_fewer_candidates(cls, topk):
    model, inputs = points_model(cls, topk=topk), batch(3, 5)
    expected = _from_raw_outputs(model, inputs)
    losses, latest, _ = train_step(model, inputs)
    check_losses(model, losses, latest, expected)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_empty_image_adds_background_alone(cls):
    # Without focal loss PAA's assignment weighs by a sum over the batch, so that it may change.
    model = points_model(cls)
    alone, latest, _ = train_step(model, batch(4))
    both, latest_both, _ = train_step(model, batch(4, 0))
    if not issubclass(cls, SamplingFreePAA):
        assert latest["num_pos_anchors"] == 2 * latest_both["num_pos_anchors"]
        for key in KEYS[cls][1:]:
            torch.testing.assert_close(both[key], alone[key])
    if cls in SAMPLING_FREE:
        assert latest_both["guide/loss_cls_raw"] > latest["guide/loss_cls_raw"]
    else:
        assert both["loss_cls"] > alone["loss_cls"]


@pytest.mark.parametrize("cls", [ATSS, PAA])
def test_without_objects_focal_loss_still_trains_the_background(cls):
    model = points_model(cls)
    losses, latest, gradients = train_step(model, batch(0, 0))
    logits = torch.cat(raw_outputs(model, batch(0, 0))[0], dim=1)
    p = logits.sigmoid()
    background = -(0.75 * p**2 * (-logits).sigmoid().log()).sum().item()
    assert losses["loss_cls"].item() == pytest.approx(background, rel=1e-4)
    assert [losses[k].item() for k in KEYS[cls][1:]] == [0, 0]
    assert latest["num_pos_anchors"] == 0
    for key, gradient in gradients.items():  # all take part, for DistributedDataParallel
        assert gradient is not None and gradient.isfinite().all(), key
    assert gradients["head.cls_score.bias"].gt(0).all()
    assert not gradients["head.bbox_pred.weight"].any()
    assert not gradients["head.ctrness.weight"].any()


@pytest.mark.parametrize("guide", ["iteration", "gradient", 1.0])
@pytest.mark.parametrize("cls", SAMPLING_FREE)
def test_without_objects_all_is_zero_but_connected(cls, guide):
    losses, latest, gradients = train_step(points_model(cls, guide=guide), batch(0, 0))
    assert [losses[k].item() for k in KEYS[cls]] == [0, 0, 0]
    assert latest["guide/empty_batches"] == 1 and latest["num_pos_anchors"] == 0
    for key, gradient in gradients.items():
        assert gradient is not None and not gradient.any(), key


@pytest.mark.parametrize("cls", [ATSS, SamplingFreeATSS])
def test_objects_without_an_anchor_are_as_no_objects(cls):
    inputs = batch(1)
    inputs[0]["instances"].gt_boxes = Boxes(torch.tensor([[5.1, 5.2, 11.6, 11.7]]))
    losses, latest, gradients = train_step(points_model(cls), inputs)
    assert latest["num_pos_anchors"] == 0
    assert [losses[k].item() for k in KEYS[cls][1:]] == [0, 0]
    assert (losses["loss_cls"].item() > 0) == (cls is ATSS)
    assert all(x is not None and x.isfinite().all() for x in gradients.values())


@pytest.mark.parametrize("cls", CLASSES)
def test_bfloat16_autocast_gives_nearly_the_same_losses(cls):
    inputs = batch(3, 5)
    full, _, _ = train_step(points_model(cls), inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, _, gradients = train_step(points_model(cls), inputs)
    for key in KEYS[cls]:
        assert half[key].dtype == torch.float32 and half[key] != full[key]
        # PAA may choose other anchors then.
        rel = 0.15 if issubclass(cls, PAA) else 0.03
        assert half[key].item() == pytest.approx(full[key].item(), rel=rel)
    assert all(x.isfinite().all() for x in gradients.values())


@pytest.mark.parametrize("cls", CLASSES)
def test_a_step_is_deterministic_and_draws_no_random_number(cls):
    model, inputs = points_model(cls), batch(3, 0, 5)
    state, results = torch.get_rng_state(), []
    for _ in range(2):
        model.zero_grad()
        losses, _, gradients = train_step(model, inputs)
        results.append({**losses, **{k: v.clone() for k, v in gradients.items()}})
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_objects_of_a_batch_stay_as_they_are(cls):
    inputs = batch(3, 5)
    before = [x["instances"].gt_boxes.tensor.clone() for x in inputs]
    train_step(points_model(cls), inputs)
    for x, boxes in zip(inputs, before):
        assert torch.equal(x["instances"].gt_boxes.tensor, boxes)


@pytest.mark.parametrize("cls", SAMPLING_FREE)
def test_an_unmeasured_prior_refuses_to_train(cls):
    with pytest.raises(BadInput, match="model.prior is still 'auto'"):
        train_step(points_model(cls, prior="auto"), batch(1))


@pytest.mark.parametrize("layer", ["bbox_pred", "cls_score", "ctrness"])
@pytest.mark.parametrize("cls", CLASSES)
def test_weights_that_diverged_are_seen_as_not_finite(cls, layer):
    # By a loss that is not finite or a FloatingPointError: the trainer explains both.
    model = points_model(cls)
    with torch.no_grad():
        getattr(model.head, layer).weight.fill_(torch.nan)
    try:
        losses, _, _ = train_step(model, batch(3, 5))
    except FloatingPointError:
        return
    assert not sum(losses.values()).isfinite()
