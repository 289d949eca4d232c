"""GHM-C against a literal loop over bins, samples and classes, and by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from helpers.literal_ghm import Literal
from sampling_free import GHMC, BadInput
from sampling_free.baselines import ghm
from sampling_free.baselines.signed_logits import signed_logits
from sampling_free.method.classification_loss import sigmoid_bce_all


def random_batch(num=40, num_classes=3, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(num, num_classes, generator=generator) - 1
    labels = torch.randint(-1, num_classes + 1, (num,), generator=generator)
    return logits, labels


@pytest.mark.parametrize(
    ("num_classes", "bins", "momentum"), [(3, 30, 0.75), (1, 30, 0.0), (3, 10, 0.9), (1, 1, 0.5)]
)
def test_losses_and_counts_of_several_batches_are_those_of_the_literal_loop(
    num_classes, bins, momentum
):
    ours, literal = GHMC(bins, momentum), Literal(bins, momentum)
    for seed in range(5):
        # The spread changes, so that bins come and go.
        logits, labels = random_batch(num_classes=num_classes, seed=seed, spread=1 + 2.0 * seed)
        loss = ours([logits], [labels])
        assert loss.item() == pytest.approx(literal(logits, labels), rel=1e-5)
        assert ours.counts.tolist() == pytest.approx(literal.counts, rel=1e-12)


def test_two_bins_by_hand():
    # g = 0.25, 0.25, 0.75 and, of the foreground row, 0.25: S = 3 and 1, both halved at first.
    log3 = math.log(3)
    logits = torch.tensor([[-log3], [-log3], [log3], [log3]])
    labels = torch.tensor([1, 1, 1, 0])
    loss = GHMC(bins=2, momentum=0.5)([logits], [labels])
    easy, hard = math.log(4 / 3), math.log(4)
    assert loss.item() == pytest.approx((3 * easy / 1.5 + hard / 0.5) / 2, rel=1e-6)
    loss = GHMC(bins=2, momentum=0.0)([logits], [labels])
    assert loss.item() == pytest.approx((easy + hard) / 2, rel=1e-6)


def test_the_count_of_a_bin_without_a_sample_stays_and_the_others_move():
    loss = GHMC(bins=2, momentum=0.5)
    low, high = torch.tensor([[-5.0]]), torch.tensor([[5.0]])
    background = torch.tensor([1])
    loss([low], [background])
    assert loss.counts.tolist() == [0.5, 0]
    loss([high], [background])
    assert loss.counts.tolist() == [0.5, 0.5]
    loss([low.repeat(3, 1)], [background.repeat(3)])
    assert loss.counts.tolist() == [1.75, 0.5]


def test_one_bin_without_momentum_is_the_mean_of_bce():
    logits, labels = random_batch()
    mean = sigmoid_bce_all(logits, labels) / (3 * (labels >= 0).sum())
    loss = GHMC(bins=1, momentum=0.0)([logits], [labels])
    assert loss.item() == pytest.approx(mean.item(), rel=1e-6)


def test_the_gradient_is_that_of_bce_with_constant_weights():
    logits, labels = random_batch()
    ours, literal = GHMC(), Literal()
    for seed in range(2):  # the second has a history
        logits, labels = random_batch(seed=seed)
        weights = torch.zeros(logits.shape)
        for pair, weight in literal.weights(logits, labels).items():
            weights[pair] = weight
        a, b = (logits.clone().requires_grad_() for _ in range(2))
        ours([a], [labels]).backward()
        target = F.one_hot(labels.clamp(min=0), 4)[:, :3].float()
        F.binary_cross_entropy_with_logits(b, target, weights, reduction="sum").backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-7)
        assert (a.grad[labels < 0] == 0).all() and (a.grad[labels >= 0] != 0).all()


def test_levels_and_images_are_one_batch():
    logits, labels = random_batch(40)
    whole, parts = GHMC(), GHMC()
    loss = whole([logits], [labels])
    shaped = [logits[:24].view(2, 12, 3), logits[24:].view(2, 8, 3)]
    other = parts(shaped, [labels[:24].view(2, 12), labels[24:].view(2, 8)])
    assert other.item() == pytest.approx(loss.item(), rel=1e-6)
    assert torch.equal(whole.counts, parts.counts)


@pytest.mark.parametrize("rows", [0, 5])
def test_without_a_valid_row_the_loss_is_zero_but_connected_and_nothing_is_counted(rows):
    loss = GHMC()
    logits = torch.randn(rows, 3, requires_grad=True)
    value = loss([logits], [torch.full((rows,), -1)])
    value.backward()
    assert value.item() == 0 and value.dtype == torch.float32
    assert logits.grad is not None and logits.grad.abs().sum() == 0
    assert loss.counts.sum() == 0


def test_only_foreground_and_only_background():
    for label in (1, 3):
        logits, _ = random_batch()
        labels = torch.full((len(logits),), label)
        expected = Literal()(logits, labels)
        assert GHMC()([logits], [labels]).item() == pytest.approx(expected, rel=1e-5)


def test_certain_scores_are_in_the_first_and_the_last_bin():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = GHMC(bins=4, momentum=0.0)
    value = loss([logits], [torch.tensor([1])])  # both as wrong as can be
    value.backward()
    assert loss.counts.tolist() == [0, 0, 0, 2]
    assert value.item() == 200 and logits.grad.tolist() == [[0.5, -0.5]]
    loss([logits], [torch.tensor([0])])
    assert loss.counts.tolist() == [2, 0, 0, 2]


def test_logits_that_are_not_finite_give_a_loss_that_says_so():
    assert not torch.isfinite(GHMC()([torch.tensor([[math.nan, 1.0]])], [torch.tensor([0])]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_also_under_autocast(dtype):
    logits, labels = random_batch()
    half = logits.to(dtype).requires_grad_()
    expected = GHMC()([half.detach().float()], [labels])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = GHMC()([half], [labels])
    assert value.dtype == torch.float32 and value.item() == expected.item()
    value.backward()
    assert half.grad.dtype == dtype and torch.isfinite(half.grad).all()


def test_the_tiny_gradients_of_easy_samples_are_exact():
    # In a batch of a million such scores a sum of float16 would be infinite or zero.
    logits = torch.full((1000, 80), -16.0)
    loss = GHMC(momentum=0.0)([logits], [torch.full((1000,), 80)])
    assert loss.item() == pytest.approx(math.log1p(math.exp(-16)), rel=1e-5)


def test_the_batch_is_that_of_all_processes(monkeypatch):
    logits, labels = random_batch(40)
    whole = GHMC()
    expected = whole([logits], [labels])
    parts = [(logits[:10], labels[:10]), (logits[10:], labels[10:])]
    total = 0
    for x, y in parts:
        alone = GHMC(momentum=0.0)
        alone([x], [y])
        total = total + alone.counts
    monkeypatch.setattr(ghm, "sum_over_processes", lambda *x: (total, 2))
    both = [GHMC() for _ in parts]
    losses = [loss([x], [y]) for loss, (x, y) in zip(both, parts)]
    # DistributedDataParallel takes the mean over the processes.
    assert (sum(losses) / 2).item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(both[0].counts, whole.counts) and torch.equal(both[1].counts, whole.counts)


def test_the_counts_are_in_the_checkpoint_and_one_without_them_loads():
    loss = GHMC()
    loss([random_batch()[0]], [random_batch()[1]])
    assert list(loss.state_dict()) == ["counts"]
    other = GHMC()
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.counts, loss.counts) and loss.counts.sum() > 0
    other.load_state_dict({})
    assert torch.equal(other.counts, loss.counts)
    assert list(loss.parameters()) == []


def test_signed_logits_are_bce_and_its_gradient():
    logits, labels = random_batch()
    target = F.one_hot(labels.clamp(min=0), 4)[:, :3].float() * (labels >= 0)[:, None]
    signed = signed_logits(logits, labels)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(F.softplus(signed), bce)
    torch.testing.assert_close(signed.sigmoid(), (logits.sigmoid() - target).abs())


@pytest.mark.parametrize(
    ("kwargs", "line"),
    [
        ({"bins": 0}, "model.bins=0: give a whole number from 1 up"),
        ({"momentum": 1.0}, "model.momentum=1.0: give a number in [0, 1)"),
        ({"momentum": "0.75"}, "model.momentum='0.75': give a number in [0, 1)"),
    ],
)
def test_bad_numbers_are_named(kwargs, line):
    with pytest.raises(BadInput) as e:
        GHMC(**kwargs)
    assert str(e.value) == line
