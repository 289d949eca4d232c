"""OHEM: the selection against loops over boxes, the losses of samples against Detectron2's sums."""

import math

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.structures import Boxes
from torchvision.ops import nms

from helpers.literal_ohem import hardest_by_loops
from sampling_free import BadInput, hard_examples
from sampling_free.baselines import ohem
from sampling_free.baselines.ohem import box_losses, require_hard


def random_samples(num, size, seed=0):
    """(losses, boxes) in an image of that size; the smaller the more of them overlap."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(num, 2, generator=generator) * size
    sides = 8 + 24 * torch.rand(num, 2, generator=generator)
    return torch.rand(num, generator=generator), torch.cat([corners, corners + sides], dim=1)


@pytest.mark.parametrize("size", [4, 30, 300])
@pytest.mark.parametrize(
    ("num", "nms_thresh"), [(1, 0.7), (8, 0.7), (8, 0.3), (64, 0.5), (500, 0.7)]
)
def test_the_hardest_are_those_found_by_loops(size, num, nms_thresh):
    losses, boxes = random_samples(300, size)
    expected = hardest_by_loops(losses, boxes, num, nms_thresh)
    assert hard_examples(losses, boxes, num, nms_thresh).tolist() == expected


def test_of_equal_losses_the_first_is_the_harder():
    losses, boxes = random_samples(200, 30)
    losses = (losses * 4).round()
    assert hard_examples(losses, boxes, 20).tolist() == hardest_by_loops(losses, boxes, 20, 0.7)


def test_no_suppression_leaves_the_largest_losses_and_identical_boxes_leave_one():
    losses, boxes = random_samples(50, 30)
    assert hard_examples(losses, boxes, 7, 1.0).tolist() == losses.topk(7).indices.tolist()
    assert hard_examples(losses, boxes[:1].repeat(50, 1), 7).tolist() == [losses.argmax().item()]


def test_as_many_as_there_are_and_none_of_none():
    losses, boxes = random_samples(3, 3000)
    assert sorted(hard_examples(losses, boxes, 128).tolist()) == [0, 1, 2]
    assert hard_examples(losses[:0], boxes[:0], 128).shape == (0,)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_are_the_hardest_or_the_easiest(bad):
    losses, boxes = random_samples(60, 3000)
    losses[17] = bad
    chosen = hard_examples(losses, boxes, 60, 1.0).tolist()
    assert sorted(chosen) == list(range(60))
    assert chosen[-1 if bad == -math.inf else 0] == 17


def test_boxes_that_are_not_finite_do_not_stop_it():
    losses, boxes = random_samples(60, 30)
    boxes[5] = math.nan
    assert len(hard_examples(losses, boxes, 10)) == 10


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_losses_and_boxes(dtype):
    losses, boxes = (x.to(dtype) for x in random_samples(60, 300))
    expected = hardest_by_loops(losses, boxes, 10, 0.7)
    assert hard_examples(losses, boxes, 10).tolist() == expected


def test_of_two_hundred_thousand_anchors_few_are_compared_and_it_equals_nms_of_all(monkeypatch):
    losses, boxes = random_samples(20_000, 60)  # nms of more takes minutes
    expected = nms(boxes, losses, 0.5)[:64]
    assert torch.equal(hard_examples(losses, boxes, 64, 0.5), expected)
    losses, boxes = random_samples(200_000, 1000)
    compared = []
    monkeypatch.setattr(ohem, "nms", lambda b, *rest: compared.append(len(b)) or nms(b, *rest))
    assert len(hard_examples(losses, boxes, 128)) == 128
    assert sum(compared) < 5_000


# The box loss of each sample ------------------------------------------------------------------

TRANSFORM = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
LOSSES = [("smooth_l1", 0.0), ("smooth_l1", 0.5), ("giou", 0.0), ("diou", 0.0), ("ciou", 0.0)]


def foreground(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    boxes, gt_boxes = random_samples(num, 30, seed)[1], random_samples(num, 30, seed + 9)[1]
    return boxes, torch.randn(num, 4, generator=generator), gt_boxes


@pytest.mark.parametrize(("loss_type", "beta"), LOSSES)
@pytest.mark.parametrize("num", [0, 12])
def test_box_losses_add_up_to_detectron2s_and_each_is_that_of_its_row(loss_type, beta, num):
    boxes, deltas, gt_boxes = foreground(num)

    def stock(rows):
        count = len(boxes[rows])
        return _dense_box_regression_loss(
            [Boxes(boxes[rows])],
            TRANSFORM,
            [deltas[rows][None]],
            [gt_boxes[rows]],
            torch.ones(1, count, dtype=torch.bool),
            loss_type,
            beta,
        )

    losses = box_losses(TRANSFORM, boxes, deltas, gt_boxes, loss_type, beta)
    assert losses.shape == (num,)
    torch.testing.assert_close(losses.sum(), stock(slice(None)))
    for i in range(num):
        torch.testing.assert_close(losses[i], stock(slice(i, i + 1)))


def test_half_precision_deltas_are_computed_in_float32():
    boxes, deltas, gt_boxes = foreground(5)
    half = deltas.half()
    losses = box_losses(TRANSFORM, boxes, half, gt_boxes, "smooth_l1", 0.0)
    assert losses.dtype == torch.float32
    full = box_losses(TRANSFORM, boxes, half.float(), gt_boxes, "smooth_l1", 0.0)
    assert torch.equal(losses, full)


def test_an_unknown_box_loss_lists_the_known_ones():
    with pytest.raises(BadInput, match="'l3': known are .*smooth_l1.*giou.*diou.*ciou"):
        box_losses(TRANSFORM, *foreground(2), "l3", 0.0)


@pytest.mark.parametrize(
    ("num", "nms_thresh", "key"),
    [
        (0, 0.7, "hard_per_image=0"),
        (64.0, 0.7, "hard_per_image=64.0"),
        (64, 1.1, "hard_nms_thresh=1.1"),
        (64, math.nan, "hard_nms_thresh=nan"),
        (64, "0.7", "hard_nms_thresh='0.7'"),
    ],
)
def test_bad_numbers_are_named(num, nms_thresh, key):
    with pytest.raises(BadInput) as e:
        require_hard("model", num, nms_thresh)
    assert str(e.value).startswith(f"model.{key}: give")
