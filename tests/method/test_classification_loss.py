"""None"""

import pytest
import torch
from torch.nn import functional as F

from helpers.classification_loss_cases import exact_of, levels_of, reference, rows_of
from sampling_free.method.classification_loss import sigmoid_bce_all, sigmoid_bce_gradient_norm


def _case(num_classes=5, rows=40, images=2, dtype=torch.float32, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, rows, num_classes, generator=generator) * scale - 2
    labels = torch.randint(-1, num_classes + 1, (images, rows), generator=generator)
    labels[0, :3] = torch.tensor([-1, num_classes, 0])  # each kind at least once
    return logits.to(dtype).requires_grad_(), labels


@pytest.mark.parametrize("num_classes", [1, 2, 5, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradient_are_those_of_one_hot_bce(dtype, num_classes):
    logits, labels = _case(num_classes, dtype=dtype)
    loss = sigmoid_bce_all(logits, labels)
    loss.backward()
    value, gradient = reference(logits, labels)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(value, rel=2e-6)
    assert logits.grad.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=2 * eps, atol=eps)


def test_gradient_agrees_with_finite_differences():
    logits, labels = _case(rows=4, scale=1.0)
    sigmoid_bce_all(logits, labels).backward()
    step = 2.0**-4
    for index in [(0, 0, 0), (1, 3, 4), (0, 2, 1)]:
        up, down = logits.detach().clone(), logits.detach().clone()
        up[index] += step
        down[index] -= step
        slope = (sigmoid_bce_all(up, labels) - sigmoid_bce_all(down, labels)) / (2 * step)
        assert logits.grad[index].item() == pytest.approx(slope.item(), abs=2e-3)


@pytest.mark.parametrize("prior", [1e-5, 1e-7])
def test_exact_at_the_prior_where_torchs_own_bce_is_not(prior):
    bias = torch.tensor(prior, dtype=torch.float64).logit()
    logits = torch.full((1, 20_000, 80), bias.item())
    labels = torch.full((1, 20_000), 80)
    exact = -1_600_000 * torch.log1p(-torch.sigmoid(logits[0, 0, 0].double())).item()
    assert sigmoid_bce_all(logits, labels).item() == pytest.approx(exact, rel=1e-5)
    naive = F.binary_cross_entropy_with_logits(logits, logits * 0, reduction="sum").item()
    assert abs(naive / exact - 1) > 0.03  # why this function exists


@pytest.mark.parametrize("size", [12.0, 40.0, 100.0])
def test_large_logits_neither_overflow_nor_lose_their_gradient(size):
    logits = torch.tensor([[[size], [-size], [size], [-size]]], requires_grad=True)
    labels = torch.tensor([[0, 0, 1, 1]])  # right, wrong, wrong, right
    loss = sigmoid_bce_all(logits, labels)
    loss.backward()
    assert loss.item() == pytest.approx(2 * size, rel=1e-4)
    assert logits.grad.flatten().tolist() == pytest.approx([0, -1, 1, 0], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype):
    logits, labels = _case(dtype=dtype)
    plain = sigmoid_bce_all(logits, labels)
    (plain_gradient,) = torch.autograd.grad(plain, logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = sigmoid_bce_all(logits, labels)
    (cast_gradient,) = torch.autograd.grad(cast, logits)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast) and torch.equal(plain_gradient, cast_gradient)


def test_half_precision_logits_at_the_prior_keep_their_tiny_loss():
    # sigmoid(-16) is below float16's smallest number.
    logits = torch.full((1, 1000, 4), -16.0, dtype=torch.float16, requires_grad=True)
    loss = sigmoid_bce_all(logits, torch.full((1, 1000), 4))
    assert loss.item() == pytest.approx(4000 * 1.12535e-7, rel=1e-5)


def test_ignored_rows_take_no_part():
    logits, labels = _case()
    kept = labels >= 0
    wild = logits.detach().clone()
    wild[~kept] = 50.0
    wild.requires_grad_()
    loss = sigmoid_bce_all(wild, labels)
    loss.backward()
    assert loss.item() == pytest.approx(reference(logits[kept], labels[kept])[0], rel=1e-6)
    assert wild.grad[~kept].abs().max() == 0
    assert wild.grad[kept].abs().min() > 0


def test_all_ignored_gives_a_zero_that_is_connected():
    logits, labels = _case()
    loss = sigmoid_bce_all(logits, torch.full_like(labels, -1))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("shape", [(0, 7), (2, 0)])
def test_no_rows_at_all_give_a_connected_zero(shape):
    logits = torch.zeros(*shape, 3, requires_grad=True)
    loss = sigmoid_bce_all(logits, torch.zeros(shape, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and logits.grad.shape == logits.shape


def test_without_positives_the_loss_is_that_of_background_alone():
    logits, labels = _case()
    background = torch.full_like(labels, 5)
    expected = -torch.log(1 - torch.sigmoid(logits.detach().double())).sum().item()
    assert sigmoid_bce_all(logits, background).item() == pytest.approx(expected, rel=1e-6)


def test_non_contiguous_logits_are_read_in_their_own_order():
    logits, labels = _case(rows=12)
    strided = logits.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous()
    assert torch.equal(sigmoid_bce_all(strided, labels), sigmoid_bce_all(logits, labels))


@pytest.mark.parametrize("labels_shape", [(2, 39), (80,), (2, 40, 5), (3, 40)])
def test_shapes_that_do_not_fit_are_named(labels_shape):
    logits, _ = _case()
    with pytest.raises(ValueError, match=r"\(2, 40, 5\)"):
        sigmoid_bce_all(logits, torch.zeros(labels_shape, dtype=torch.int64))


def test_levels_are_the_rows_that_detectron2_makes_of_them(device):
    levels, labels = levels_of(device)
    value, wanted = exact_of(levels, labels)
    for logits in (levels, tuple(levels), rows_of(levels)):
        loss = sigmoid_bce_all(logits, labels)
        assert loss.item() == pytest.approx(value, rel=1e-6)
        for g, w in zip(torch.autograd.grad(loss, levels), wanted):
            torch.testing.assert_close(g.cpu().double(), w, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize(
    ("levels_shapes", "labels_shape"),
    [
        ([(2, 6, 3, 4), (2, 6, 1, 3)], (2, 29)),
        ([(2, 6, 3, 4), (2, 6, 1, 3)], (3, 30)),
        ([(2, 6, 3, 4), (2, 6, 1, 3)], (60,)),
        ([(2, 6, 3, 4), (2, 6, 1, 3)], (2, 0)),
        ([(2, 6, 3, 4), (2, 4, 1, 3)], (2, 30)),
        ([(2, 6, 3, 4), (1, 6, 1, 3)], (2, 30)),
        ([(2, 6, 12), (2, 6, 3)], (2, 30)),
        ([(2, 5, 3, 4)], (2, 24)),  # 5 channels of 2 anchors
        ([(2, 6, 3, 4)], (2, 11)),  # less than an anchor for each place
        ([(2, 1, 1, 3)], (2, 6)),  # less than a class for each anchor
        ([(2, 6, 0, 4)], (2, 5)),
        ([(2, 6, 0, 4)], (3, 0)),
        ([], (2, 0)),
    ],
)
@pytest.mark.parametrize("function", [sigmoid_bce_all, sigmoid_bce_gradient_norm])
def test_levels_that_do_not_fit_are_named(function, levels_shapes, labels_shape):
    levels = [torch.zeros(shape) for shape in levels_shapes]
    with pytest.raises(ValueError) as error:
        function(levels, torch.zeros(labels_shape, dtype=torch.int64))
    assert str(levels_shapes) in str(error.value) and str(labels_shape) in str(error.value)


@pytest.mark.parametrize("sizes", [[(0, 4)], [(0, 4), (3, 0)]])
def test_levels_without_any_place_give_a_connected_zero(sizes):
    levels = [torch.zeros(2, 6, *size, requires_grad=True) for size in sizes]
    labels = torch.zeros(2, 0, dtype=torch.int64)
    loss = sigmoid_bce_all(levels, labels)
    loss.backward()
    assert loss.item() == 0 and all(x.grad.shape == x.shape for x in levels)
    assert sigmoid_bce_gradient_norm(levels, labels).item() == 0


def test_no_image_gives_a_connected_zero():
    level = torch.zeros(0, 6, 3, 4, requires_grad=True)
    loss = sigmoid_bce_all([level], torch.zeros(0, 24, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and level.grad.shape == level.shape
