"""Both kernels of sigmoid_bce_all against float64, logit by logit: the same tests for both.

The one in Triton runs on a GPU if there is one, else in Triton's interpreter.
"""

import importlib.util
import math
import os
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.classification_loss_cases import exact_of
from sampling_free.method import kernels
from sampling_free.method.classification_loss import sigmoid_bce_all, sigmoid_bce_gradient_norm
from sampling_free.method.kernels import sigmoid_bce_torch

if importlib.util.find_spec("triton") is not None:
    from sampling_free.method.kernels import sigmoid_bce_triton

    OWN_PLACES = sigmoid_bce_triton.PLACES

# images, anchors at each place, classes, places of each level
SMALL = (2, 2, 3, [(3, 4), (1, 3)])
SHAPES = [
    ((1, 1, 1, [(1, 1)]), torch.float32),
    ((3, 1, 1, [(5, 7), (1, 3)]), torch.bfloat16),
    ((2, 3, 5, [(3, 5), (2, 1), (1, 1)]), torch.float32),
    ((1, 4, 20, [(3, 3), (1, 2)]), torch.float16),
    ((2, 1, 17, [(1, 13), (13, 1)]), torch.float32),
]
FORMATS = [torch.contiguous_format, torch.channels_last]
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "slice of channels": lambda x: torch.cat([x, x + 1], 1)[:, : x.shape[1]],
    "every other image": lambda x: x.repeat_interleave(2, 0)[::2],
}


only_triton = pytest.mark.parametrize("device", ["triton"], indirect=True)


def random_levels(shape, device, mean=-2.0, std=3.0, dtype=torch.float32):
    num_images, num_anchors, num_classes, sizes = shape
    generator = torch.Generator().manual_seed(0)
    channels = num_anchors * num_classes
    levels = [torch.randn(num_images, channels, *s, generator=generator) for s in sizes]
    return [(x * std + mean).to(device, dtype) for x in levels]


def random_labels(shape, device, foreground=0.3, ignored=0.2):
    num_images, num_anchors, num_classes, sizes = shape
    rows = num_images, num_anchors * sum(h * w for h, w in sizes)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(num_classes, rows, generator=generator)
    kind = torch.rand(rows, generator=generator)
    labels[kind > foreground] = num_classes
    labels[kind > 1 - ignored] = -1
    return labels.to(device)


def all_background(levels, num_classes):
    num_rows = sum(x[0].numel() for x in levels) // num_classes
    return torch.full((len(levels[0]), num_rows), num_classes, device=levels[0].device)


def is_dense(x):
    """As a convolution's output is; its gradient is to come in the same order."""
    return any(x.is_contiguous(memory_format=f) for f in FORMATS)


def rounding(x):
    """How far the next number of a dtype can be, relatively."""
    eps = torch.finfo(x.dtype).eps
    # Triton's interpreter cuts off the digits that bfloat16 does not have.
    return eps if x.dtype == torch.bfloat16 and not x.is_cuda else 0.501 * eps


def check(levels, labels, num_classes, factor=-2.5):
    """Loss, its gradient at each logit and the L1 norm of that are those of ``exact_of``."""
    levels = [x.detach().requires_grad_() for x in levels]
    loss = sigmoid_bce_all(levels, labels)
    gradients = torch.autograd.grad(factor * loss, levels)
    value, wanted = exact_of(levels, labels, num_classes)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(value, rel=1e-6, abs=0)
    for x, g, w in zip(levels, gradients, wanted):
        assert g.dtype == x.dtype and g.device == x.device
        assert g.stride() == x.stride() or not is_dense(x)
        atol = 2e-7 * abs(factor)
        torch.testing.assert_close(g.cpu().double(), factor * w, rtol=rounding(x), atol=atol)
    norm = sigmoid_bce_gradient_norm(levels, labels)
    assert norm.dtype == torch.float32 and not norm.requires_grad
    expected = sum(w.abs().sum().item() for w in wanted)
    assert norm.item() == pytest.approx(expected, rel=1e-6, abs=0)


@pytest.mark.parametrize(("shape", "dtype"), SHAPES, ids=str)
def test_value_gradient_and_norm(device, shape, dtype):
    check(random_levels(shape, device, dtype=dtype), random_labels(shape, device), shape[2])


@pytest.mark.parametrize("piece", [1, 16, 33])
def test_borders_of_pieces(monkeypatch, piece):
    monkeypatch.setattr(sigmoid_bce_torch, "PIECE", piece)
    for (shape, dtype), layout in zip(SHAPES, cycle(["contiguous", "channels last"])):
        levels = [LAYOUTS[layout](x) for x in random_levels(shape, "cpu", dtype=dtype)]
        check(levels, random_labels(shape, "cpu"), shape[2])


@only_triton
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_borders_of_programs(device, monkeypatch, layout):
    monkeypatch.setattr(sigmoid_bce_triton, "PLACES", 4)
    monkeypatch.setattr(sigmoid_bce_triton, "CLASSES", 2)
    shape = (1, 2, 3, [(3, 3), (1, 5)])
    levels = [LAYOUTS[layout](x) for x in random_levels(shape, device)]
    check(levels, random_labels(shape, device), 3)


@only_triton
def test_programs_as_large_as_on_a_gpu(device, monkeypatch):
    monkeypatch.setattr(sigmoid_bce_triton, "PLACES", OWN_PLACES)
    shape = (1, 1, 2, [(OWN_PLACES + 3, 1)])
    check(random_levels(shape, device), random_labels(shape, device), 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_of_logits_in_memory(device, layout):
    plain = random_levels(SMALL, device)
    levels = [LAYOUTS[layout](x) for x in plain]
    assert all(torch.equal(x, y) for x, y in zip(levels, plain))
    check(levels, random_labels(SMALL, device), 3)


def test_levels_of_several_dtypes_and_orders(device):
    shape = (1, 2, 3, [(2, 3), (3, 1), (1, 1), (2, 2)])
    a, b, c, d = random_levels(shape, device)
    d = d.double().contiguous(memory_format=torch.channels_last)
    check([a, b.half(), c.bfloat16(), d], random_labels(shape, device), 3)


def test_levels_without_places(device):
    (a, b), labels = random_levels(SMALL, device), random_labels(SMALL, device)
    none = a[:, :, :0].clone().requires_grad_()
    loss = sigmoid_bce_all([none, a, none, b], labels)
    assert loss.item() == sigmoid_bce_all([a, b], labels).item()
    loss.backward()
    assert none.grad.shape == none.shape


@pytest.mark.parametrize(("foreground", "ignored"), [(0, 0), (1, 0), (0, 1), (0.5, 0.5)])
def test_kinds_of_rows(device, foreground, ignored):
    labels = random_labels(SMALL, device, foreground, ignored)
    check(random_levels(SMALL, device), labels, 3)


@pytest.mark.parametrize("prior", [1e-5, 1e-7])
def test_constant_prior(device, prior):
    logit = torch.tensor(prior, dtype=torch.float64).logit().item()
    levels = [torch.full((1, 16, 8, 8), logit, device=device)]
    check(levels, all_background(levels, 16), 16)


@pytest.mark.parametrize(("mean", "std"), [(-11.5, 0.5), (0, 5), (3, 30)])
def test_random_logits(device, mean, std):
    shape = (1, 1, 16, [(8, 11)])
    levels = random_levels(shape, device, mean, std)
    check(levels, all_background(levels, 16), 16, factor=1)
    check(levels, random_labels(shape, device, 0.05, 0.05), 16, factor=1)


@pytest.mark.parametrize(("mean", "allowed"), [(-11.5, 5e-4), (-16, 1e-3)])
def test_half_precision_gradient_with_a_grad_scalers_factor(device, mean, allowed):
    (x,) = random_levels((1, 1, 16, [(8, 11)]), device, mean, 0.5, torch.float16)
    labels = all_background([x], 16)
    (gradient,) = torch.autograd.grad(65536 * sigmoid_bce_all([x.requires_grad_()], labels), x)
    _, (wanted,) = exact_of([x], labels, 16)
    error = (gradient.cpu().double() / 65536 / wanted - 1).abs()
    assert error.mean() < allowed


@pytest.mark.parametrize("mean", [-4, 0, 3])
def test_high_scores_beside_special_places(device, mean):
    check(random_levels(SMALL, device, mean), random_labels(SMALL, device), 3)


@pytest.mark.parametrize("logit", [-1e4, 1e38, -math.inf, math.inf])
def test_huge_logits(device, logit):
    """As softplus(x) and its derivative have it: 0 and 0 on one side, x and 1 on the other."""
    for label, sign in [(0, -1), (1, 1)]:
        x = torch.full((16, 1), -30.0, device=device)
        labels = torch.ones(16, dtype=torch.int64, device=device)
        x[3], labels[3] = logit, label
        loss = sigmoid_bce_all(x.requires_grad_(), labels)
        loss.backward()
        assert loss.item() == pytest.approx(max(sign * logit, 0), rel=1e-6, abs=1e-11)
        assert x.grad[3].item() == (sign if sign * logit > 0 else 0)
        norm = sigmoid_bce_gradient_norm(x, labels)
        assert norm.item() == pytest.approx(float(sign * logit > 0), abs=1e-11)


@pytest.mark.parametrize("label", [0, 3])
def test_what_is_no_number_is_not_lost(device, label):
    (x,) = random_levels((1, 1, 3, [(5, 4)]), device)
    labels = all_background([x], 3)
    labels[0, 6] = label
    _, (wanted,) = exact_of([x], labels, 3)
    broken = x.clone()
    broken[0, 0, 1, 2] = wanted[0, 0, 1, 2] = math.nan
    loss = sigmoid_bce_all([broken.requires_grad_()], labels)
    loss.backward()
    found = broken.grad.cpu().double()
    assert math.isnan(loss.item())
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-7, equal_nan=True)
    assert math.isnan(sigmoid_bce_gradient_norm([broken], labels).item())


@pytest.mark.parametrize("logit", [math.nan, math.inf])
def test_what_is_no_number_takes_no_part_where_it_is_ignored(device, logit):
    levels, labels = random_levels(SMALL, device), random_labels(SMALL, device)
    labels[1, 3] = -1  # the second place, its second anchor
    broken = [x.clone().requires_grad_() for x in levels]
    broken[0].data[1, 3:, 0, 1] = logit
    loss = sigmoid_bce_all(broken, labels)
    loss.backward()
    assert loss.item() == sigmoid_bce_all(levels, labels).item()
    assert broken[0].grad[1, 3:, 0, 1].tolist() == [0, 0, 0]
    assert all(torch.isfinite(x.grad).all() for x in broken)
    norm = sigmoid_bce_gradient_norm(levels, labels)
    assert sigmoid_bce_gradient_norm(broken, labels).item() == norm.item()


def test_repeated_bit_for_bit(device):
    shape = (1, 2, 5, [(3, 4)])
    levels, labels = random_levels(shape, device), random_labels(shape, device)
    levels = [x.requires_grad_() for x in levels]

    def run():
        loss = sigmoid_bce_all(levels, labels)
        return loss, *torch.autograd.grad(loss, levels), sigmoid_bce_gradient_norm(levels, labels)

    first = run()
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(3):
            assert all(torch.equal(x, y) for x, y in zip(run(), first))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("is_cuda", "has_triton", "name"),
    [
        (False, False, "torch"),
        (False, True, "torch"),
        (True, False, "torch"),
        (True, True, "triton"),
    ],
)
def test_which_kernel(monkeypatch, is_cuda, has_triton, name):
    if name == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(kernels, "_has_triton", lambda: has_triton)
    kernel = kernels.kernel_of(SimpleNamespace(is_cuda=is_cuda))
    assert kernel.__name__ == f"sampling_free.method.kernels.sigmoid_bce_{name}"


COMPILE = """
import sys
import types

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Without what the package imports besides, which takes seconds.
sys.modules["sampling_free"] = package = types.ModuleType("sampling_free")
package.__path__ = [sys.argv[1]]
from sampling_free.kernels.sigmoid_bce_triton import GRADIENT, LOSS, PLACES, _sigmoid_bce

for logits, kind, classes in (("*fp32", LOSS, 16), ("*bf16", GRADIENT, 1)):
    signature = dict.fromkeys(_sigmoid_bce.arg_names, "i32")
    out = logits if kind == GRADIENT else "*fp32"
    signature.update(x_ptr=logits, label_ptr="*i64", out_ptr=out, scale_ptr="*fp32")
    constants = dict(KIND=kind, PLACES=PLACES, CLASSES=classes)
    signature.update(dict.fromkeys(constants, "constexpr"))
    source = ASTSource(_sigmoid_bce, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    print("bytes", len(compiled.asm["cubin"]))
"""


def test_compiles_for_a_gpu_that_is_not_there(tmp_path):
    pytest.importorskip("triton.backends.compiler", reason="Triton is not installed")
    import triton

    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas").exists():
        pytest.skip("this Triton comes without ptxas")
    # A process of its own: here Triton was imported for its interpreter.
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    script = tmp_path / "compile_kernel.py"
    script.write_text(COMPILE)
    done = subprocess.run(
        [sys.executable, str(script), str(Path(kernels.__file__).parents[1])],
        capture_output=True,
        text=True,
        env=environment,
    )
    sizes = [int(x.split()[1]) for x in done.stdout.splitlines() if x.startswith("bytes")]
    assert len(sizes) == 2 and min(sizes) > 1000, done.stderr[-2000:]
