"""Value and gradient of sigmoid_bce_all against one-hot cross entropy, and its arguments."""

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


@pytest.mark.parametrize(
    "dtype, num_classes", [(torch.float32, 1), (torch.bfloat16, 5), (torch.float16, 80)]
)
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


@pytest.mark.parametrize("prior", [1e-5, 1e-7])
def test_exact_at_the_prior_where_torchs_own_bce_is_not(prior):
    bias = torch.tensor(prior, dtype=torch.float64).logit()
    logits = torch.full((1, 20_000, 80), bias.item())
    labels = torch.full((1, 20_000), 80)
    exact = -1_600_000 * torch.log1p(-torch.sigmoid(logits[0, 0, 0].double())).item()
    assert sigmoid_bce_all(logits, labels).item() == pytest.approx(exact, rel=1e-5)
    naive = F.binary_cross_entropy_with_logits(logits, logits * 0, reduction="sum").item()
    assert abs(naive / exact - 1) > 0.03  # why this function exists


def test_half_precision_logits_at_the_prior_keep_their_tiny_loss():
    # sigmoid(-16) is below float16's smallest number.
    logits = torch.full((1, 1000, 4), -16.0, dtype=torch.float16, requires_grad=True)
    loss = sigmoid_bce_all(logits, torch.full((1, 1000), 4))
    assert loss.item() == pytest.approx(4000 * 1.12535e-7, rel=1e-5)


def test_non_contiguous_logits_are_read_in_their_own_order():
    logits, labels = _case(rows=12)
    strided = logits.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous()
    assert torch.equal(sigmoid_bce_all(strided, labels), sigmoid_bce_all(logits, labels))


def test_levels_are_the_rows_that_detectron2_makes_of_them(device):
    levels, labels = levels_of(device)
    value, wanted = exact_of(levels, labels)
    for logits in (levels, tuple(levels), rows_of(levels)):
        loss = sigmoid_bce_all(logits, labels)
        assert loss.item() == pytest.approx(value, rel=1e-6)
        for g, w in zip(torch.autograd.grad(loss, levels), wanted):
            torch.testing.assert_close(g.cpu().double(), w, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize(
    "shapes, labels_shape",
    [
        ([(2, 6, 0, 4)], (2, 0)),
        ([(2, 6, 0, 4), (2, 6, 3, 0)], (2, 0)),
        ([(0, 6, 3, 4)], (0, 24)),
        ((0, 7, 3), (0, 7)),  # rows
        ((2, 0, 3), (2, 0)),
    ],
)
def test_nothing_at_all_gives_a_connected_zero(shapes, labels_shape):
    rows = isinstance(shapes, tuple)
    leaves = [torch.zeros(x, requires_grad=True) for x in ([shapes] if rows else shapes)]
    logits, labels = leaves[0] if rows else leaves, torch.zeros(labels_shape, dtype=torch.int64)
    loss = sigmoid_bce_all(logits, labels)
    loss.backward()
    assert loss.item() == 0 and all(x.grad.shape == x.shape for x in leaves)
    assert sigmoid_bce_gradient_norm(logits, labels).item() == 0


@pytest.mark.parametrize(
    ("levels_shapes", "labels_shape"),
    [
        ([(2, 6, 3, 4), (2, 6, 1, 3)], (2, 29)),
        ([(2, 6, 3, 4), (2, 6, 1, 3)], (3, 30)),
        ([(2, 6, 3, 4), (2, 6, 1, 3)], (60,)),
        ([(2, 6, 3, 4), (2, 4, 1, 3)], (2, 30)),
        ([(2, 6, 12), (2, 6, 3)], (2, 30)),
        ([(2, 5, 3, 4)], (2, 24)),  # 5 channels of 2 anchors
        ([(2, 6, 3, 4)], (2, 11)),  # less than an anchor for each place
        ([(2, 1, 1, 3)], (2, 6)),  # less than a class for each anchor
        ([(2, 6, 0, 4)], (2, 5)),
        ([], (2, 0)),
        ((2, 40, 5), (2, 39)),  # rows
        ((2, 40, 5), (80,)),
    ],
)
def test_shapes_that_do_not_fit_are_named(levels_shapes, labels_shape):
    rows = isinstance(levels_shapes, tuple)
    logits = torch.zeros(levels_shapes) if rows else [torch.zeros(x) for x in levels_shapes]
    for function in (sigmoid_bce_all, sigmoid_bce_gradient_norm):
        with pytest.raises(ValueError) as error:
            function(logits, torch.zeros(labels_shape, dtype=torch.int64))
        assert str(levels_shapes) in str(error.value) and str(labels_shape) in str(error.value)
