"""OHEM in RoI heads, and bad input to the baselines."""

from unittest import mock

import pytest
import torch
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from helpers import tiny_detectors
from helpers.baseline_detectors_cases import BOX_LOSSES
from helpers.literal_ohem import hardest_by_loops
from helpers.tiny import batch, tiny_retinanet, train_step
from helpers.tiny_detectors import rcnn, rcnn_batch
from sampling_free import (
    GHMRPN,
    OHEMRPN,
    BadInput,
    GHMRetinaNet,
    OHEMRetinaNet,
    OHEMStandardROIHeads,
    SamplingFreeFastRCNNOutputLayers,
)


def roi_inputs(model, inputs, seed=0):
    """(features, labeled proposals): random boxes besides those near the objects."""
    model.train()
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    torch.manual_seed(seed)
    targets = [x["instances"] for x in inputs]
    with torch.no_grad():
        proposals, _ = model.proposal_generator.eval()(images, features)
    for instances, target in zip(proposals, targets):
        near = [target.gt_boxes.tensor + x for x in (-1.5, 0.5, 1.0, 2.0)]
        boxes = torch.cat([*near, instances.proposal_boxes.tensor])
        instances._fields.clear()
        instances.proposal_boxes = Boxes(boxes)
        instances.objectness_logits = torch.zeros(len(boxes))
    with EventStorage():
        return features, model.roi_heads.label_and_sample_proposals(proposals, targets)


def predictions_of(heads, features, proposals):
    features = [features[f] for f in heads.box_in_features]
    pooled = heads.box_pooler(features, [x.proposal_boxes for x in proposals])
    return heads.box_predictor(heads.box_head(pooled))


@pytest.mark.parametrize(
    ("box_loss", "num_classes", "agnostic"), list(zip(BOX_LOSSES, (3, 1, 3), (False, False, True)))
)
def test_ohem_of_roi_heads_is_detectron2s_loss_of_the_hardest_proposals(
    box_loss, num_classes, agnostic
):
    weight = {"loss_cls": 2.0, "loss_box_reg": 0.5}
    predictor = {"box_reg_loss_type": box_loss[0], "smooth_l1_beta": box_loss[1]}
    model = rcnn(
        roi_class=OHEMStandardROIHeads,
        num_classes=num_classes,
        agnostic=agnostic,
        predictor={**predictor, "loss_weight": weight},
        hard_per_image=6,
    )
    heads = model.roi_heads
    features, proposals = roi_inputs(model, batch(3, 0, 5, num_classes=num_classes))
    chosen, total = [], 0
    with torch.no_grad(), EventStorage():
        for i, instances in enumerate(proposals):
            # Detectron2's loss of a batch of one proposal is the loss of that proposal.
            one_image = {k: v[i : i + 1] for k, v in features.items()}
            logits, deltas = predictions_of(heads, one_image, [instances])
            each = torch.zeros(len(instances))
            for j in range(len(instances)):
                rows = slice(j, j + 1)
                means = heads.box_predictor.losses((logits[rows], deltas[rows]), [instances[rows]])
                each[j] = sum(means.values())
            best = hardest_by_loops(each, instances.proposal_boxes.tensor, 6, 0.7)
            chosen.append(instances[torch.tensor(best)])
            total += each[best].sum()
        expected = heads.box_predictor.losses(predictions_of(heads, features, chosen), chosen)
    with EventStorage() as storage:
        losses = heads._forward_box(features, proposals)
        num_hard_fg = storage.latest()["roi_head/num_hard_fg_samples"][0]
    assert losses.keys() == expected.keys()
    for key, value in losses.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)
    num = sum(map(len, chosen))
    assert sum(losses.values()).item() == pytest.approx(total.item() / num, rel=1e-4)
    num_fg = sum((x.gt_classes < num_classes).sum().item() for x in chosen)
    assert num_hard_fg == num_fg / 3 and 0 < num_fg
    # The other heads get the same minibatch.
    assert [len(x) for x in proposals] == [len(x) for x in chosen] == [6, 6, 6]
    for a, b in zip(proposals, chosen):
        assert torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor)


def test_only_the_hardest_proposals_have_a_gradient():
    model = rcnn(roi_class=OHEMStandardROIHeads, hard_per_image=6)
    heads = model.roi_heads
    features, proposals = roi_inputs(model, batch(3, 5))
    seen = []
    heads.box_head.register_forward_hook(lambda *x: seen.append((len(x[2]), x[2].requires_grad)))
    before = sum(map(len, proposals))
    with EventStorage():
        heads._forward_box(features, proposals)
    assert before > 12 and seen == [(before, False), (12, True)]


@pytest.mark.parametrize("kind", ["mask", "keypoint"])
def test_the_other_heads_learn_from_the_same_minibatch(kind):
    model = rcnn(roi_class=OHEMStandardROIHeads, kind=kind, hard_per_image=4)
    seen = []
    head = getattr(model.roi_heads, f"{kind}_head")
    head.register_forward_hook(lambda *x: seen.append(len(x[1][0])))
    losses, latest, gradients = train_step(model, rcnn_batch(3, 5, kind=kind))
    assert losses[f"loss_{kind}"] > 0 and all(g is not None for g in gradients.values())
    assert seen[0] <= 2 * latest["roi_head/num_hard_fg_samples"] <= 8
    assert latest["roi_head/num_fg_samples"] > latest["roi_head/num_hard_fg_samples"]


def test_predicted_boxes_can_train_the_other_heads():
    model = rcnn(
        roi_class=OHEMStandardROIHeads, kind="mask", hard_per_image=4, train_on_pred_boxes=True
    )
    losses, _, _ = train_step(model, rcnn_batch(3, 5, kind="mask"))
    assert all(x.isfinite() for x in losses.values())


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: tiny_retinanet(OHEMRetinaNet, hard_per_image=0),
            "model.hard_per_image=0: give a whole number from 1 up",
        ),
        (
            lambda: tiny_retinanet(GHMRetinaNet, bins=0),
            "model.bins=0: give a whole number from 1 up",
        ),
        (
            lambda: rcnn(OHEMRPN, rpn={"batch_size_per_image": 0.5}),
            "model.proposal_generator.batch_size_per_image=0.5: give a whole number from 1 up",
        ),
        (
            lambda: rcnn(GHMRPN, rpn={"momentum": 1}),
            "model.proposal_generator.momentum=1: give a number in [0, 1)",
        ),
        (
            lambda: rcnn(roi_class=OHEMStandardROIHeads, hard_nms_thresh=7),
            "model.roi_heads.hard_nms_thresh=7: give a number in [0, 1]",
        ),
    ],
)
def test_bad_numbers_are_named(make, line):
    with pytest.raises(BadInput) as e:
        make()
    assert str(e.value) == line


def test_a_guided_box_predictor_is_refused():
    with mock.patch.object(
        tiny_detectors, "FastRCNNOutputLayers", SamplingFreeFastRCNNOutputLayers
    ):
        with pytest.raises(BadInput, match='see as_variant\\(cfg, "ohem"\\)'):
            rcnn(roi_class=OHEMStandardROIHeads)
