"""In bfloat16 on a CPU no gradient reads memory that nobody wrote, on whatever processor."""

import pytest
import torch
from torch import nn

from sampling_free.utils.autocast import training_autocast

SIDES = [(3, 1), (3, 2), (3, 3), (3, 4), (1, 4), (14, 2), (11, 4), (1, 1)]
CHANNELS = [(16, 32), (64, 64), (256, 36)]


def poison():
    """Leaves freed memory full of NaN, which the next allocations get."""
    for size in (64, 1024, 4096, 16384, 65536):
        blocks = [torch.full((size,), float("nan")) for _ in range(8)]
        del blocks


def gradients(layer, x, dtype):
    """Output and gradients of the sum of squares, in float32."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    poison()
    with training_autocast("cpu", dtype):
        y = layer(x)
    poison()
    y.float().square().sum().backward()
    return [t.float() for t in (y, x.grad, layer.weight.grad, layer.bias.grad)]


@pytest.mark.parametrize(
    "kernel, stride",
    [(1, 2), (3, 1), (3, 2), (7, 1), (7, 2), (3, 4), (5, (1, 3)), (3, (1, 2)), (3, (2, 1))],
)
def test_a_convolution_has_the_gradients_of_float32_on_narrow_levels(kernel, stride):
    torch.manual_seed(0)
    for i, sides in enumerate(SIDES):
        channels = CHANNELS[(i + kernel) % len(CHANNELS)]
        check(nn.Conv2d(*channels, kernel, stride, padding=kernel // 2), sides)


@pytest.mark.parametrize("kernel, stride", [(2, 2), (4, 2), (3, 3)])
def test_so_has_a_transposed_one(kernel, stride):
    torch.manual_seed(0)
    for sides in ((5, 1), (1, 5), (9, 1)):
        check(nn.ConvTranspose2d(64, 16, kernel, stride), sides)


def check(layer, sides):
    x = torch.randn(2, layer.in_channels, *sides)
    expected = gradients(layer, x, None)
    first = gradients(layer, x, torch.bfloat16)
    for a, b in zip(first, expected):
        assert (a - b).abs().max() < 0.05 * b.abs().max()
    for _ in range(3):
        assert all(map(torch.equal, gradients(layer, x, torch.bfloat16), first))


def test_the_output_stays_in_bfloat16_and_wide_inputs_are_computed_in_it():
    layer = nn.Conv2d(16, 16, 3, stride=2, padding=1)
    with training_autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(1, 16, 4, 1)).dtype == torch.bfloat16
        wide = torch.randn(1, 16, 8, 8)
        assert torch.equal(layer(wide), torch.conv2d(wide, layer.weight, layer.bias, 2, 1))
        with torch.autocast("cpu", enabled=False):
            assert layer(torch.randn(1, 16, 4, 1)).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(wide), layer.bfloat16()(wide.bfloat16()))


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_other_types_are_left_to_pytorch(dtype):
    layer = nn.Conv2d(4, 4, 3, stride=2, padding=1)
    x = torch.randn(1, 4, 2, 1)
    with training_autocast("cpu", dtype):
        found = layer(x)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        assert torch.equal(found, layer(x)) and found.dtype == (dtype or torch.float32)
