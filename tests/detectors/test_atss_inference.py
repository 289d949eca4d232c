"""Detections, weights and settings of ATSS and PAA, with focal loss and without."""

import math

import pytest
import torch
from detectron2.modeling.meta_arch.fcos import FCOS

from helpers.literal_points import decoded, nms_literal, square_anchors, vote_literal
from helpers.tiny import batch
from helpers.tiny_detectors import tiny_fcos
from helpers.tiny_points import CLASSES, points_model, raw_outputs
from sampling_free import ATSS, PAA, SamplingFreeATSS, SamplingFreePAA
from sampling_free.utils.errors import BadInput

PAIRS = [(ATSS, SamplingFreeATSS), (PAA, SamplingFreePAA)]


# --- detections -----------------------------------------------------------------------------------


def _detect(model, inputs):
    with torch.no_grad():
        return [x["instances"] for x in model.eval()(inputs)]


def _literal(model, inputs, i, *, thresholds, topk=1000, nms=0.6, num=100, voting=False):
    """[(box, score, class)] of image ``i``, best first, not yet cut to the image."""
    boxes, scores, classes = [], [], []
    for level, logits, deltas, quality in zip(
        square_anchors((64, 96)), *raw_outputs(model, inputs)
    ):
        of_level = []
        for r, anchor in enumerate(level):
            for k, threshold in enumerate(thresholds):
                p, q = logits[i, r, k].sigmoid().item(), quality[i, r, 0].sigmoid().item()
                if p > threshold:
                    box = [x.item() for x in decoded(deltas[i, r], anchor)]
                    of_level.append((math.sqrt(p * q), box, k))
        of_level.sort(key=lambda x: -x[0])
        for score, box, k in of_level[:topk]:
            boxes.append(box), scores.append(score), classes.append(k)
    kept = nms_literal(boxes, scores, classes, nms)[:num]
    final = [boxes[j] for j in kept]
    if voting:
        final = vote_literal(final, [classes[j] for j in kept], boxes, scores, classes)
    return [(box, scores[j], classes[j]) for box, j in zip(final, kept)]


def _same(found, expected, size=(64, 96), scale=(1.0, 1.0)):
    """``found`` is ``expected`` scaled and cut to an image of (height, width)."""
    height, width = size
    rows = []
    for box, score, k in expected:
        x0, x1 = (min(max(x * scale[1], 0), width) for x in box[::2])
        y0, y1 = (min(max(y * scale[0], 0), height) for y in box[1::2])
        if x0 < x1 and y0 < y1:
            rows.append(([x0, y0, x1, y1], score, k))
    assert found.image_size == size and len(found) == len(rows)
    assert found.pred_classes.tolist() == [k for _, _, k in rows]
    assert found.scores.tolist() == pytest.approx([s for _, s, _ in rows], rel=1e-4)
    for box, (expected_box, _, _) in zip(found.pred_boxes.tensor.tolist(), rows):
        assert box == pytest.approx(expected_box, rel=1e-4, abs=1e-2)


SETTINGS = {
    "defaults": (dict(test_score_thresh=0.01), dict(thresholds=[0.01] * 3)),
    "threshold": (dict(test_score_thresh=0.03), dict(thresholds=[0.03] * 3)),
    "few of a level": (
        dict(test_score_thresh=0.001, test_topk_candidates=7),
        dict(thresholds=[0.001] * 3, topk=7),
    ),
    "suppression": (
        dict(test_score_thresh=0.01, test_nms_thresh=0.2),
        dict(thresholds=[0.01] * 3, nms=0.2),
    ),
    "few detections": (
        dict(test_score_thresh=0.01, max_detections_per_image=5),
        dict(thresholds=[0.01] * 3, num=5),
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("cls", [ATSS, SamplingFreePAA])
def test_detections_are_those_of_the_definition(cls, name):
    settings, literal = SETTINGS[name]
    model, inputs = points_model(cls, **settings), batch(2, 1)
    with torch.no_grad():
        model.head.cls_score.bias.fill_(-3.5)
    for i, found in enumerate(_detect(model, inputs)):
        expected = _literal(model, inputs, i, voting=issubclass(cls, PAA), **literal)
        assert len(expected) >= 5
        _same(found, expected)


def test_without_voting_the_boxes_of_paa_are_those_after_suppression():
    settings = dict(test_score_thresh=0.005)
    model, inputs = points_model(PAA, score_voting=False, **settings), batch(2)
    voting = points_model(PAA, **settings)
    (found,), (voted,) = _detect(model, inputs), _detect(voting, inputs)
    _same(found, _literal(model, inputs, 0, thresholds=[0.005] * 3))
    assert torch.equal(found.scores, voted.scores)
    assert torch.equal(found.pred_classes, voted.pred_classes)
    assert not torch.allclose(found.pred_boxes.tensor, voted.pred_boxes.tensor)


@pytest.mark.parametrize("cls", [SamplingFreeATSS, PAA])
def test_boxes_have_the_size_of_the_image_that_was_asked_for(cls):
    model, inputs = points_model(cls, test_score_thresh=0.005), batch(2)
    inputs[0].update(height=32, width=192)
    (found,) = _detect(model, inputs)
    expected = _literal(model, inputs, 0, thresholds=[0.005] * 3, voting=issubclass(cls, PAA))
    _same(found, expected, (32, 192), (0.5, 2.0))


@pytest.mark.parametrize("cls", [SamplingFreeATSS, PAA])
def test_the_threshold_is_of_the_class_score_and_not_of_what_ranks(cls):
    model, inputs = points_model(cls, test_score_thresh=0.005), batch(2)
    (before,) = _detect(model, inputs)
    with torch.no_grad():
        model.head.ctrness.weight.zero_()
        model.head.ctrness.bias.fill_(-20.0)
    (after,) = _detect(model, inputs)
    assert len(before) > 10 and len(after) > 10
    assert after.scores.max() < 0.005 < before.scores.max()


@pytest.mark.parametrize("cls", [SamplingFreeATSS, PAA])
def test_nothing_above_the_threshold_is_no_detection(cls):
    model = points_model(cls, test_score_thresh=0.9999)
    for found in _detect(model, batch(2, 0)):
        assert len(found) == 0 and found.pred_boxes.tensor.shape == (0, 4)
        assert found.scores.shape == found.pred_classes.shape == (0,)
        assert found.pred_classes.dtype == torch.long


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls, norm", [*zip(CLASSES, ["", "BN"] * 2)])
def test_the_weights_are_those_of_detectron2s_fcos(cls, norm):
    model, fcos = points_model(cls, norm=norm), tiny_fcos(FCOS, norm=norm, seed=3)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, fcos)]
    assert shapes[0] == shapes[1] and list(shapes[0]) == list(shapes[1])
    model.load_state_dict(fcos.state_dict(), strict=True)
    for key, value in fcos.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("focal", "sampling_free"), PAIRS)
def test_the_defaults_are_the_published_ones_but_for_the_threshold(focal, sampling_free):
    a, b = tiny_fcos(focal), tiny_fcos(sampling_free)
    assert (a.test_score_thresh, b.test_score_thresh) == (0.05, 0.001)
    for model in (a, b):
        assert model.topk == 9 and model.test_nms_thresh == 0.6
        assert model.box_loss_weight == (1.3 if focal is PAA else 2.0)
        sides = [x[0, 2] - x[0, 0] for x in model.anchor_generator.cell_anchors]
        assert [float(x) for x in sides] == [64, 128, 256, 512, 1024]
    assert b.prior == "auto" and b.guide.key == "iteration"


@pytest.mark.parametrize("cls, side", [(ATSS, 4.0), (SamplingFreePAA, 5.5)])
def test_anchors_are_squares_around_the_middle_of_each_cell(cls, side):
    model = points_model(cls, anchor_size=side)
    features = [torch.zeros(1, 1, -(-64 // s), -(-96 // s)) for s in (8, 16, 32, 64, 128)]
    for ours, expected in zip(
        model.anchor_generator(features), square_anchors((64, 96), side=side)
    ):
        torch.testing.assert_close(ours.tensor, torch.from_numpy(expected).float())


@pytest.mark.parametrize("cls, topk", [(ATSS, 0), (SamplingFreePAA, -1)])
def test_a_number_of_candidates_below_one_is_refused(cls, topk):
    with pytest.raises(BadInput, match="topk"):
        points_model(cls, topk=topk)
