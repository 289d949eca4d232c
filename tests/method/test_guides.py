"""The guides by themselves: norms of gradients, what "frozen" remembers and learns, and names."""

import math

import pytest
import torch
from torch.nn import functional as F

from sampling_free import BadInput, guided_losses, make_guide
from sampling_free.method.classification_loss import (
    cross_entropy_gradient_norm,
    sigmoid_bce_gradient_norm,
)
from sampling_free.method.guides import gradient_norms

TINY_LOGIT = math.log(1e-7) - math.log1p(-1e-7)
TYPES = [torch.float32, torch.float16, torch.bfloat16]


def sigmoid_norm(logits, labels):
    """By autograd in float64, one sample after the other in formulas that do not cancel."""
    x = logits.detach().double().requires_grad_()
    loss = x.sum() * 0
    for row, label in zip(x, labels.tolist()):
        if label >= 0:
            right = torch.arange(len(row)) == label
            loss = loss - F.logsigmoid(torch.where(right, row, -row)).sum()
    return torch.autograd.grad(loss, x)[0].abs().sum().item()


def softmax_norm(logits, labels):
    x = logits.detach().double().requires_grad_()
    loss = F.cross_entropy(x, labels.masked_fill(labels < 0, -100), reduction="sum")
    return torch.autograd.grad(loss, x)[0].abs().sum().item()


def drawn(num_classes, rows=60, scale=3.0, lowest=-1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, num_classes, generator=generator)
    return logits, torch.randint(lowest, num_classes + 1, (rows,), generator=generator)


class TestNormsOfTheClassificationGradients:
    @pytest.mark.parametrize("num_classes, dtype", [*zip([1, 3, 3], TYPES)])
    def test_that_of_sigmoids_is_autograds(self, num_classes, dtype):
        logits, labels = drawn(num_classes)
        logits = logits.to(dtype)
        norm = sigmoid_bce_gradient_norm(logits, labels)
        assert norm.dtype == torch.float32
        assert norm.item() == pytest.approx(sigmoid_norm(logits, labels), rel=1e-5)

    @pytest.mark.parametrize("num_classes, dtype", [*zip([1, 3, 3], TYPES)])
    def test_that_of_a_softmax_is_autograds(self, num_classes, dtype):
        logits, labels = drawn(num_classes + 1)
        labels = labels.clamp(max=num_classes)
        logits = logits.to(dtype)
        norm = cross_entropy_gradient_norm(logits, labels)
        assert norm.dtype == torch.float32
        assert norm.item() == pytest.approx(softmax_norm(logits, labels), rel=1e-5)

    def test_of_several_images_it_is_the_sum(self):
        logits, labels = drawn(3)
        whole = sigmoid_bce_gradient_norm(logits.view(4, 15, 3), labels.view(4, 15))
        assert whole.item() == pytest.approx(sigmoid_norm(logits, labels), rel=1e-5)

    @pytest.mark.parametrize("num_classes, dtype", [*zip([1, 3, 3], TYPES)])
    def test_they_are_exact_where_scores_are_0_or_1(self, num_classes, dtype):
        logits, labels = drawn(num_classes, scale=1)
        for x in (40 * logits.sign(), torch.full_like(logits, TINY_LOGIT)):
            x = x.to(dtype)
            expected = pytest.approx(sigmoid_norm(x, labels), rel=1e-5)
            assert sigmoid_bce_gradient_norm(x, labels).item() == expected
        logits, labels = drawn(num_classes + 1, scale=1)
        x, labels = (40 * logits.sign()).to(dtype), labels.clamp(max=num_classes)
        expected = pytest.approx(softmax_norm(x, labels), rel=1e-5)
        assert cross_entropy_gradient_norm(x, labels).item() == expected

    @pytest.mark.parametrize(
        "num_classes, right, others", [(1, 16.0, TINY_LOGIT), (3, 40.0, -40.0)]
    )
    def test_they_are_exact_where_all_is_learned(self, num_classes, right, others):
        """1 - p of the right class must not be lost beside the 1 of its score."""
        labels = torch.arange(30) % (num_classes + 1)
        x = torch.full((30, num_classes + 1), others)
        x[torch.arange(30), labels] = right
        x = x[:, :num_classes]
        expected = pytest.approx(sigmoid_norm(x, labels), rel=1e-4, abs=0)
        assert sigmoid_bce_gradient_norm(x, labels).item() == expected

    def test_that_of_a_certain_softmax_does_not_vanish(self):
        x = torch.tensor([[20.0, 0, 0], [-40.0, 40.0, -40.0]])
        small = 2 * (2 * math.exp(-20) / (1 + 2 * math.exp(-20)) + 2 * math.exp(-80))
        norm = cross_entropy_gradient_norm(x, torch.tensor([0, 1]))
        assert norm.item() == pytest.approx(small, rel=1e-5)

    def test_without_a_valid_row_they_are_zero(self):
        for norm in (sigmoid_bce_gradient_norm, cross_entropy_gradient_norm):
            assert norm(torch.randn(4, 3), torch.full((4,), -1)).item() == 0
            assert norm(torch.zeros(0, 3), torch.zeros(0).long()).item() == 0


class TestNormsOfTheBoxGradients:
    def test_each_loss_sees_its_own_predictions_and_a_box_is_a_mean_over_coordinates(self):
        deltas = [torch.randn(2, n, 4) for n in (5, 3)]
        quality = [torch.randn(2, n, 1) for n in (5, 3)]

        def losses(boxes, qualities):
            box = sum((x.abs() * 3).sum() for x in boxes)
            # A target may depend on the boxes, without gradient.
            return box, sum((q * 0.5).sum() for q in qualities) + boxes[0].detach().sum() * 7

        norms = gradient_norms(torch.tensor(9.0), losses, deltas, quality)
        assert [x.item() for x in norms] == pytest.approx([9.0, 16 * 3.0, 16 * 0.5])

    def test_they_need_no_graph_and_leave_none(self):
        predictions = torch.randn(6, 4, dtype=torch.bfloat16, requires_grad=True)
        with torch.no_grad():
            cls, box = gradient_norms(
                torch.tensor(1.0), lambda xs: (xs[0] ** 2).sum(), [predictions]
            )
        assert box.item() == pytest.approx(predictions.abs().sum().item() * 2 / 4, rel=1e-2)
        assert predictions.grad is None and not box.requires_grad and not cls.requires_grad


def losses_of(guide, cls, locs, num, normalizers=None, norms=None):
    return guided_losses(
        torch.tensor(float(cls)),
        tuple(torch.tensor(float(x)) for x in locs),
        torch.tensor(num),
        guide,
        loc_normalizers=normalizers and tuple(torch.tensor(float(x)) for x in normalizers),
        gradient_norms=norms,
    )


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_the_gradient_guide_is_the_mean_ratio_of_the_normalized_norms(weight):
    guide = make_guide("gradient", weight=weight)
    norms = [torch.tensor(x) for x in (12.0, 6.0, 10.0)]
    found = losses_of(guide, 100, (7, 9), 4, (4, 2.5), lambda: norms)
    expected = weight * (6 / 4 + 10 / 2.5) / 2 / (12 / 4)
    assert found.ratio.item() == pytest.approx(expected)
    assert found.loss_cls.item() == pytest.approx(expected * 100 / 4)
    assert [x.item() for x in found.loss_loc] == pytest.approx([7 / 4, 9 / 2.5])


@pytest.mark.parametrize("guide", ["iteration", "frozen", 0.5])
def test_no_other_guide_pays_for_the_norms(guide):
    def norms():
        raise AssertionError

    losses_of(make_guide(guide), 3, (2,), 4, norms=norms)


class TestFrozen:
    def test_r_follows_for_100_batches_with_foreground_and_then_stays(self):
        guide = make_guide("frozen", weight=2.0, num_losses=2)
        generator = torch.Generator().manual_seed(1)
        num_seen, last = 0, 0.0
        for i in range(130):
            cls, loc = (torch.rand(2, generator=generator) + 0.5).tolist()
            num = 0 if i % 10 == 3 else 5  # every tenth has none: 110 are in 122 batches
            found = losses_of(guide, cls, (loc,), num)
            if num and num_seen < 100:
                num_seen, last = num_seen + 1, 2 * loc / cls
            assert found.ratio.item() == pytest.approx(last if num else 0.0)
            assert guide.ratio.item() == pytest.approx(last)
            assert guide.num_batches.item() == num_seen
        assert num_seen == 100

    @pytest.mark.parametrize("num_losses", [2, 3])
    def test_the_learned_weights_minimize_the_sum_where_sigma_squared_is_the_loss(self, num_losses):
        guide = make_guide("frozen", num_losses=num_losses)
        locs = [2.0, 0.25][: num_losses - 1]
        optimizer = torch.optim.SGD(guide.parameters(), lr=0.05)
        first = losses_of(guide, 3, locs, 1)
        assert first.loss_guide.item() == 0  # sigma is 1: half of each loss
        assert [x.item() for x in first.loss_loc] == pytest.approx([x / 2 for x in locs])
        for _ in range(400):
            found = losses_of(guide, 3, locs, 1)
            optimizer.zero_grad()
            (found.loss_cls + sum(found.loss_loc) + found.loss_guide).backward()
            optimizer.step()
        scaled = sum(locs) / len(locs)  # r L_cls
        sigmas = guide.log_sigmas.exp().tolist()
        assert sigmas == pytest.approx([math.sqrt(x) for x in (scaled, *locs)], rel=1e-3)
        total = (found.loss_cls + sum(found.loss_loc) + found.loss_guide).item()
        assert total == pytest.approx(sum(0.5 + math.log(s) for s in sigmas), rel=1e-3)

    def test_without_foreground_the_weights_get_a_gradient_of_zero(self):
        guide = make_guide("frozen")
        found = losses_of(guide, 3, (0,), 0)
        total = found.loss_cls + sum(found.loss_loc) + found.loss_guide
        total.backward()
        assert total.item() == 0 and guide.log_sigmas.grad.tolist() == [0, 0]

    def test_restart_forgets_all_of_it(self):
        guide = make_guide("frozen")
        losses_of(guide, 3, (2,), 4)
        with torch.no_grad():
            guide.log_sigmas.fill_(0.3)
        guide.restart()
        fresh = make_guide("frozen").state_dict()
        assert all(torch.equal(x, fresh[k]) for k, x in guide.state_dict().items())
        assert guide.log_sigmas.requires_grad


def test_only_frozen_has_a_state_and_a_number_may_be_text():
    assert make_guide("0.5").key == make_guide(0.5).key == 0.5
    assert set(make_guide("frozen").state_dict()) == {"ratio", "num_batches", "log_sigmas"}
    for guide in ("iteration", "gradient", 0.5):
        assert not make_guide(guide).state_dict() and not list(make_guide(guide).parameters())


@pytest.mark.parametrize("guide", ["frosen", "", None, -0.5, "nan", math.inf, [0.5]])
def test_an_unknown_guide_is_one_line_that_lists_those_known(guide):
    with pytest.raises(BadInput) as error:
        make_guide(guide, "model.some.guide")
    line = str(error.value)
    assert len(line.splitlines()) == 1 and f"model.some.guide={guide!r}" in line
    assert all(x in line for x in ("'iteration'", "'gradient'", "'frozen'", "constant"))
    assert "MODEL.SAMPLING_FREE.GUIDE" in line
