"""RoI heads without sampling: every proposal takes part, in training and in no other way."""

from itertools import cycle

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import (
    FastRCNNOutputLayers,
)
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from helpers.every_proposal_cases import BOTH, OWN_LOSSES, roi_heads
from helpers.proposals import rows, spy
from helpers.roi_losses import KINDS, SIZE, WEIGHTS, expected_sums
from helpers.tiny import train_step
from helpers.tiny_detectors import rcnn_batch, tiny_rcnn
from sampling_free import (
    BadInput,
)


def targets_and_proposals(seed=0, nums=(3, 0, 5), num_proposals=40):
    """Ground truth of some images, and proposals, half of them near the objects."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator)

    targets, proposals = [], []
    for num in nums:
        corner = uniform(num, 2) * 40
        boxes = torch.cat([corner, corner + 8 + 16 * uniform(num, 2)], dim=1)
        classes = torch.randint(3, (num,), generator=generator)
        targets.append(Instances(SIZE, gt_boxes=Boxes(boxes), gt_classes=classes))
        corner = uniform(num_proposals, 2) * 50
        around = torch.cat([corner, corner + 4 + 20 * uniform(num_proposals, 2)], dim=1)
        if num:
            near = boxes[torch.arange(num_proposals // 2) % num]
            around[: len(near)] = near + 6 * uniform(len(near), 4) - 3
        found = Instances(SIZE, proposal_boxes=Boxes(around))
        found.objectness_logits = uniform(num_proposals)
        proposals.append(found)
    return targets, proposals


def label(heads, proposals, targets):
    with EventStorage() as storage:
        labeled = heads.label_and_sample_proposals(proposals, targets)
        return labeled, {k: v for k, (v, _) in storage.latest().items()}


MATCHERS = {
    "plain": ([0.5], [0, 1]),
    "ignoring": ([0.3, 0.6], [0, -1, 1]),
}


# Fast R-CNN's: what overlaps with nothing is ignored, but for an image without objects.
LOWEST_IGNORED = ([0.1, 0.5], [-1, 0, 1])


class TestEveryProposal:
    @pytest.mark.parametrize("append", [True, False])
    def test_all_proposals_and_the_ground_truth_are_kept_in_order(self, append):
        targets, proposals = targets_and_proposals()
        boxes = [p.proposal_boxes.tensor.clone() for p in proposals]
        kept, _ = label(roi_heads(proposal_append_gt=append), proposals, targets)
        for got, given, target in zip(kept, boxes, targets):
            whole = torch.cat([given, target.gt_boxes.tensor]) if append else given
            assert torch.equal(got.proposal_boxes.tensor, whole)

    @pytest.mark.parametrize("matcher", [*MATCHERS.values(), LOWEST_IGNORED])
    def test_they_are_stocks_with_a_sample_larger_than_all(self, matcher):
        settings = matcher

        def labeled(stock):
            matcher = Matcher(*settings, allow_low_quality_matches=False)
            targets, proposals = targets_and_proposals(1)
            return label(roi_heads(stock, proposal_matcher=matcher), proposals, targets)

        (ours, our_numbers), (theirs, their_numbers) = labeled(False), labeled(True)
        for a, b in zip(ours, theirs):
            assert a.get_fields().keys() == b.get_fields().keys()
            assert rows(a) == rows(b) and len(a) > 15
        assert our_numbers == their_numbers

    def test_they_take_no_random_numbers(self):
        targets, proposals = targets_and_proposals()
        heads = roi_heads()
        before = torch.get_rng_state()
        label(heads, proposals, targets)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("kind", ["c4", "cascade"])
    def test_the_other_roi_heads_keep_them_too(self, kind):
        targets, proposals = targets_and_proposals()
        kept, _ = label(roi_heads(kind=kind), proposals, targets)
        assert [len(x) for x in kept] == [43, 40, 45]


def model_of(kind, num_classes=3, **kwargs):
    return tiny_rcnn(kind, num_classes, rpn={"prior": 0.01}, **kwargs)


@pytest.mark.parametrize("kind, num_classes", [*zip(KINDS, cycle([3, 1]))])
def test_training_uses_every_proposal_and_guides_the_loss(kind, num_classes, monkeypatch):
    model = model_of(kind, num_classes)
    found = spy(monkeypatch, model.proposal_generator, "forward")
    lossed = spy(monkeypatch, model.roi_heads.box_predictor, "losses")
    inputs = rcnn_batch(3, 5, kind=kind, num_classes=num_classes)
    losses, latest, gradients = train_step(model, inputs)
    assert losses.keys() == BOTH | OWN_LOSSES[kind]
    predictions, proposals = lossed[0][0]
    num_found = [len(p) for p in found[0][1][0]]
    assert [len(p) for p in proposals] == [num_found[0] + 3, num_found[1] + 5]
    sums = expected_sums(model.roi_heads.box_predictor, predictions, proposals)
    sum_cls, sum_box, num_foreground = sums
    assert num_foreground >= 8  # the ground truth itself
    assert losses["loss_box_reg"].item() == pytest.approx(sum_box / num_foreground, rel=1e-4)
    assert losses["loss_cls"].item() == pytest.approx(2 * sum_box / num_foreground, rel=1e-4)
    assert latest["guide/roi/r"] == pytest.approx(2 * sum_box / sum_cls, rel=1e-4)
    assert latest["roi_head/num_fg_samples"] == num_foreground / 2
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.isfinite().all(), name
        assert "roi_heads" not in name or gradient.abs().max() > 0, name


class TestMaxMaskPositives:
    def _seen(self, monkeypatch, seed=0, nums=(4, 6), **kwargs):
        """(instances that the mask head sees, foreground of each image, losses) of a step."""
        model = model_of("mask", **kwargs)
        masked = spy(monkeypatch, model.roi_heads.mask_head, "forward")
        lossed = spy(monkeypatch, model.roi_heads.box_predictor, "losses")
        torch.manual_seed(seed)
        losses, _, _ = train_step(model, rcnn_batch(*nums, kind="mask"))
        ((pooled, instances), _) = masked[0]
        assert len(pooled) == sum(map(len, instances))
        foreground = [p[p.gt_classes < 3] for p in lossed[0][0][1]]
        return instances, foreground, losses

    def test_it_is_off_by_default_and_the_mask_head_sees_all_foreground(self, monkeypatch):
        seen, foreground, _ = self._seen(monkeypatch)
        for a, b in zip(seen, foreground):
            assert torch.equal(a.proposal_boxes.tensor, b.proposal_boxes.tensor)

    @pytest.mark.parametrize("limit", [1, 5])
    def test_it_limits_each_image(self, monkeypatch, limit):
        seen, foreground, _ = self._seen(monkeypatch, max_mask_positives=limit, nums=(4, 6, 0))
        assert [len(x) for x in seen] == [min(limit, len(x)) for x in foreground]
        assert len(foreground[0]) >= 4 and len(foreground[2]) == 0
        for a, b in zip(seen, foreground):
            drawn, given = (x.proposal_boxes.tensor.tolist() for x in (a, b))
            masks = a.gt_masks.tensor if drawn else []
            for box, k, mask in zip(drawn, a.gt_classes.tolist(), masks):
                i = given.index(box)
                assert b.gt_classes[i].item() == k and torch.equal(b.gt_masks.tensor[i], mask)

    def test_the_choice_is_random_and_every_positive_has_its_turn(self, monkeypatch):
        drawn = set()
        for seed in range(30):
            seen, foreground, _ = self._seen(monkeypatch, seed, nums=(4,), max_mask_positives=3)
            boxes = [tuple(x) for x in seen[0].proposal_boxes.tensor.tolist()]
            assert len(set(boxes)) == 3  # without replacement
            drawn.update(boxes)
        assert drawn == {tuple(x) for x in foreground[0].proposal_boxes.tensor.tolist()}

    def test_the_box_losses_are_the_same(self, monkeypatch):
        _, _, off = self._seen(monkeypatch)
        _, _, on = self._seen(monkeypatch, max_mask_positives=2)
        for key in BOTH:
            assert torch.equal(off[key], on[key]), key
        assert on["loss_mask"] > 0 and on["loss_mask"] != off["loss_mask"]

    @pytest.mark.parametrize(("limit", "takes"), [(None, False), (10**6, False), (2, True)])
    def test_random_numbers_are_taken_only_where_something_is_drawn(self, limit, takes):
        model = model_of("mask", max_mask_positives=limit)
        before = torch.get_rng_state()
        train_step(model, rcnn_batch(4, 6, kind="mask"))
        assert torch.equal(torch.get_rng_state(), before) != takes

    @pytest.mark.parametrize("limit", [0, 2.5, "7", True])
    def test_an_impossible_limit_is_refused(self, limit):
        with pytest.raises(BadInput, match=f"max_mask_positives={limit!r}.*None"):
            model_of("mask", max_mask_positives=limit)

    def test_without_a_mask_head_it_does_nothing(self):
        losses, _, _ = train_step(model_of("faster", max_mask_positives=1), rcnn_batch(4, 6))
        assert losses.keys() == BOTH


@pytest.mark.parametrize("kind", ["faster", "c4"])
def test_a_stock_box_predictor_is_refused(kind):
    predictor = FastRCNNOutputLayers(
        ShapeSpec(channels=16), box2box_transform=Box2BoxTransform(weights=WEIGHTS), num_classes=3
    )
    with pytest.raises(BadInput, match="is FastRCNNOutputLayers.*SamplingFreeFastRCNNOutputLayers"):
        model_of(kind, box_predictor=predictor)
