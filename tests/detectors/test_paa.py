"""What PAA adds to ATSS: an assignment by the network's losses."""

import sys

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from helpers.literal_points import decoded, iou, paa_candidates, square_anchors
from helpers.tiny import batch, train_step
from helpers.tiny_points import as_levels, paa_targets, points_model, raw_outputs
from sampling_free import PAA, BadInput, SamplingFreePAA
from sampling_free.engine.step import PrecisionTrainer

CLASSES = [PAA, SamplingFreePAA]
LEVELS = square_anchors((64, 96))
ANCHORS = [a.tolist() for level in LEVELS for a in level]


def _labels(model, inputs):
    """The model's own labels (N, R) and boxes (N, R, 4) of its own predictions."""
    logits, deltas, _ = raw_outputs(model, inputs)
    labels, boxes = model.label_by_prediction(
        [Boxes(torch.from_numpy(x).float()) for x in LEVELS],
        [x["instances"] for x in inputs],
        as_levels([x.float() for x in logits]),
        [x.float() for x in deltas],
    )
    return torch.stack(list(labels)), torch.stack(list(boxes))


def _literal(model, inputs, threshold=0.1):
    logits, deltas, _ = (torch.cat(x, dim=1) for x in raw_outputs(model, inputs))
    return paa_targets(model, LEVELS, inputs, logits, deltas, threshold)


def _inputs(*objects):
    """One image with these boxes, all of class 0, 1, ..."""
    (record,) = batch(1)
    record["instances"] = Instances(
        (64, 96),
        gt_boxes=Boxes(torch.tensor(objects)),
        gt_classes=torch.arange(len(objects)) % 3,
    )
    return [record]


@pytest.mark.parametrize("seed, topk, threshold", [(0, 9, 0.1), (1, 2, 0.1), (2, 9, 0.6)])
@pytest.mark.parametrize("cls", CLASSES)
def test_labels_and_boxes_are_those_of_the_paper(cls, seed, topk, threshold):
    model = points_model(cls, topk=topk, iou_threshold=threshold, seed=seed)
    inputs = batch(3, 0, 7, seed=seed)
    labels, boxes = _labels(model, inputs)
    expected, expected_boxes = _literal(model, inputs, threshold)
    assert labels.tolist() == expected.tolist() and (labels < 3).sum() >= 4
    foreground = labels < 3
    torch.testing.assert_close(boxes[foreground].double(), expected_boxes[foreground])


@pytest.mark.parametrize("cls", CLASSES)
def test_an_object_that_overlaps_no_anchor_enough_has_its_best(cls):
    inputs = _inputs([41.3, 21.9, 49.2, 30.4])
    assert max(iou(a, [41.3, 21.9, 49.2, 30.4]) for a in ANCHORS) < 0.1
    model = points_model(cls)
    labels, _ = _labels(model, inputs)
    assert (labels < 3).any()
    assert labels.tolist() == _literal(model, inputs)[0].tolist()


def test_an_object_without_area_has_no_candidate_and_changes_nothing():
    anchors, box = Boxes(torch.tensor(ANCHORS)), [10.3, 12.1, 70.7, 51.9]
    line = [40.3, 20.1, 40.3, 50.1]
    model = points_model(PAA)
    alone, beside = (
        model.candidate_objects(anchors, Boxes(torch.tensor(x))) for x in ([box], [box, line])
    )
    assert torch.equal(alone, beside) and (alone == 0).any()
    assert (model.candidate_objects(anchors, Boxes(torch.tensor([line]))) == -1).all()


def test_with_focal_loss_an_image_has_the_same_labels_in_any_batch():
    model, inputs = points_model(PAA), batch(3, 5, 2)
    together, _ = _labels(model, inputs)
    for i, x in enumerate(inputs):
        assert torch.equal(_labels(model, [x])[0][0], together[i])


def test_without_focal_loss_both_parts_of_the_anchors_losses_have_the_same_sum():
    # Of all anchors for the classification, of the candidates for the localization.
    model, inputs = points_model(SamplingFreePAA), batch(3, 5)
    logits, deltas, _ = (torch.cat(x, dim=1) for x in raw_outputs(model, inputs))
    labels = torch.full(logits.shape[:2], 3)
    for n, x in enumerate(inputs):
        instances = x["instances"]
        objects = paa_candidates(ANCHORS, instances.gt_boxes.tensor.double().tolist())
        for r, g in enumerate(objects):
            if g >= 0:
                labels[n, r] = instances.gt_classes[g]
    foreground = labels < 3
    loc = torch.rand(int(foreground.sum())) + 0.1
    levels = as_levels(logits.float().split([len(x) for x in LEVELS], dim=1))
    anchors_losses = model.anchor_losses(levels, labels, foreground, loc) - loc
    right = torch.nn.functional.one_hot(labels, 4)[..., :3].double()
    every = torch.nn.functional.binary_cross_entropy_with_logits(logits, right, reduction="none")
    expected = every.sum(dim=2)[foreground] / every.sum() * loc.sum()
    torch.testing.assert_close(anchors_losses.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cls", CLASSES)
def test_no_gradient_flows_through_the_assignment(cls):
    model, inputs = points_model(cls), batch(3)
    logits, deltas, _ = (
        [x.float().requires_grad_() for x in kind] for kind in raw_outputs(model, inputs)
    )
    anchors = [Boxes(torch.from_numpy(x).float()) for x in LEVELS]
    labels, boxes = model.label_by_prediction(
        anchors, [x["instances"] for x in inputs], as_levels(logits), deltas
    )
    assert not any(x.requires_grad for x in [*labels, *boxes])


def test_the_quality_target_is_the_overlap_of_the_predicted_box():
    model, generator = points_model(PAA), torch.Generator().manual_seed(0)
    anchors = torch.tensor(ANCHORS)
    deltas = 4 * torch.rand(len(anchors), 4, generator=generator) - 2
    predicted = torch.stack([torch.stack(decoded(d, a)) for d, a in zip(deltas, anchors)])
    objects = anchors + 8 * torch.rand(len(anchors), 4, generator=generator)
    target = model.quality_target(predicted, anchors, objects)
    expected = [iou(a, b) for a, b in zip(predicted.tolist(), objects.tolist())]
    assert target.tolist() == pytest.approx(expected, rel=1e-4)
    itself = model.quality_target(predicted, anchors, predicted)
    assert itself.tolist() == [1.0] * len(anchors)
    far = model.quality_target(predicted, anchors, objects + 1e4)
    assert not far.any()


@pytest.mark.parametrize("cls", CLASSES)
def test_boxes_that_miss_every_object_give_finite_losses(cls):
    # The sum of the weights is zero then.
    model = points_model(cls)
    with torch.no_grad():
        model.head.bbox_pred.weight.zero_()
        model.head.bbox_pred.bias.copy_(torch.tensor([1e3, 1e3, 0.0, 0.0]))
    losses, latest, gradients = train_step(model, batch(3))
    assert latest["num_pos_anchors"] > 0
    assert losses["loss_box_reg"] == 0 and losses["loss_iou"] > 0
    assert all(x.isfinite() for x in losses.values())
    assert all(x.isfinite().all() for x in gradients.values())


def test_without_scikit_learn_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    with pytest.raises(BadInput, match="scikit-learn.*pip install scikit-learn"):
        train_step(points_model(PAA), batch(3))


@pytest.mark.parametrize("cls", CLASSES)
def test_what_is_not_finite_is_named_by_the_trainer(cls):
    model = points_model(cls)
    with torch.no_grad():
        model.head.cls_score.weight.fill_(torch.nan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = PrecisionTrainer(model, [batch(3)], optimizer, "cpu")
    trainer.iter = 0
    with EventStorage(), pytest.raises(FloatingPointError) as e:
        trainer.run_step()
    assert "not finite" in str(e.value) and "proposals" not in str(e.value)
