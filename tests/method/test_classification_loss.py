import math

import pytest
import torch
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from torch.nn import functional as F

from sampling_free.method.classification_loss import sigmoid_bce_all, sigmoid_bce_gradient_norm
from sampling_free.method.kernels import sigmoid_bce_torch


def _reference(logits, labels):
    """Value and gradient of binary cross entropy on one-hot targets in float64, row by row."""
    num_classes = logits.shape[-1]
    x = logits.detach().double().reshape(-1, num_classes).requires_grad_()
    total = x.sum() * 0
    for row, label in zip(x, labels.reshape(-1).tolist()):
        if label < 0:
            continue
        target = torch.zeros(num_classes, dtype=torch.float64)
        if label < num_classes:
            target[label] = 1
        p = torch.sigmoid(row)
        total = total - (target * p.log() + (1 - target) * torch.sigmoid(-row).log()).sum()
    total.backward()
    return total.item(), x.grad.reshape(logits.shape)


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
    value, gradient = _reference(logits, labels)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(value, rel=2e-6)
    assert logits.grad.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=2 * eps, atol=eps)


def test_gradient_follows_the_outer_factor():
    logits, labels = _case()
    (-2.5 * sigmoid_bce_all(logits, labels)).backward()
    _, gradient = _reference(logits, labels)
    torch.testing.assert_close(logits.grad.double(), -2.5 * gradient, rtol=1e-5, atol=1e-6)


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
    assert loss.item() == pytest.approx(_reference(logits[kept], labels[kept])[0], rel=1e-6)
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


def test_the_order_of_the_samples_does_not_matter():
    logits, labels = _case(rows=64)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    shuffled = sigmoid_bce_all(logits[:, order], labels[:, order])
    assert shuffled.item() == pytest.approx(sigmoid_bce_all(logits, labels).item(), rel=1e-6)


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


def _levels(device="cpu", dtype=torch.float32, mean=-2.0):
    """Two levels of 2 images, 2 anchors and 3 classes, and labels (2, 30) of every kind."""
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(2, 6, *size, generator=generator) * 3 + mean for size in [(3, 4), (1, 3)]]
    labels = torch.randint(-1, 4, (2, 30), generator=generator)
    return [x.to(device, dtype).requires_grad_() for x in levels], labels.to(device)


def _rows(levels):
    """(N, R, K) as Detectron2 makes it of all levels."""
    return torch.cat([permute_to_N_HWA_K(x, 3) for x in levels], dim=1)


def _exact(levels, labels):
    """Value and gradients at the levels by ``_reference``, in float64."""
    copies = [x.detach().cpu().double().requires_grad_() for x in levels]
    rows = _rows(copies)
    value, gradient = _reference(rows, labels.cpu())
    return value, torch.autograd.grad(rows, copies, gradient)


def _assert_gradients(levels, wanted, atol=1e-6):
    for x, w in zip(levels, wanted):
        torch.testing.assert_close(x.grad.cpu().double(), w, rtol=1e-6, atol=atol)


def test_levels_are_the_rows_that_detectron2_makes_of_them(device):
    levels, labels = _levels(device)
    value, wanted = _exact(levels, labels)
    for logits in (levels, tuple(levels), _rows(levels)):
        loss = sigmoid_bce_all(logits, labels)
        assert loss.item() == pytest.approx(value, rel=1e-6)
        for g, w in zip(torch.autograd.grad(loss, levels), wanted):
            torch.testing.assert_close(g.cpu().double(), w, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize("shape", [(), (5,), (3, 2, 4), (1, 1, 1)])
def test_rows_of_any_number_of_dimensions(device, shape):
    logits, labels = _case(rows=24)
    num = math.prod(shape)
    logits = logits.detach().flatten(0, 1)[:num].reshape(*shape, 5).to(device).requires_grad_()
    labels = labels.flatten()[:num].reshape(shape).to(device)
    loss = sigmoid_bce_all(logits, labels)
    loss.backward()
    value, gradient = _reference(logits.cpu(), labels.cpu())
    assert loss.item() == pytest.approx(value, rel=1e-6)
    torch.testing.assert_close(logits.grad.cpu().double(), gradient, rtol=1e-6, atol=2e-7)


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


def test_gradient_norm_is_the_l1_norm_of_the_gradient(device):
    levels, labels = _levels(device)
    _, wanted = _exact(levels, labels)
    expected = sum(w.abs().sum().item() for w in wanted)
    for logits in (levels, _rows(levels)):
        norm = sigmoid_bce_gradient_norm(logits, labels)
        assert norm.item() == pytest.approx(expected, rel=1e-6) and not norm.requires_grad


@pytest.mark.parametrize("factor", [0.0, -2.5, 65536.0])
def test_later_factors_of_the_loss(device, factor):
    levels, labels = _levels(device)
    _, wanted = _exact(levels, labels)
    learned = torch.tensor(factor, device=device, requires_grad=True)
    loss = sigmoid_bce_all(levels, labels)
    (loss * learned / 2).backward()
    _assert_gradients(levels, [factor / 2 * w for w in wanted], atol=1e-6 + 2e-7 * abs(factor))
    assert learned.grad.item() == pytest.approx(loss.item() / 2)


def test_a_grad_scaler_hands_back_small_gradients(device):
    """sigmoid(-16) is below the smallest number of float16; its factor is in it beforehand."""
    weight = torch.full((50, 4), -16.0, device=device, requires_grad=True)
    labels = torch.full((50,), 4, device=device)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler(device, init_scale=65536.0)
    scaler.scale(sigmoid_bce_all(weight.half(), labels)).backward()
    scaler.unscale_(optimizer)
    expected = torch.full((50, 4), torch.tensor(-16.0, dtype=torch.float64).sigmoid().item())
    torch.testing.assert_close(weight.grad.cpu(), expected, rtol=1e-3, atol=0)


def test_a_grad_scaler_sees_what_is_too_large(device):
    weight = torch.zeros(5, 4, device=device, requires_grad=True)  # 65536 * 4 / 2: inf in float16
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler(device, init_scale=65536.0 * 4)
    loss = sigmoid_bce_all(weight.half(), torch.full((5,), 4, device=device))
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.abs().max().item() == 0 and scaler.get_scale() == 65536.0 * 2


def test_gradients_accumulate(device):
    levels, labels = _levels(device)
    _, wanted = _exact(levels, labels)
    for _ in range(3):
        sigmoid_bce_all(levels, labels).backward()
    _assert_gradients(levels, [3 * w for w in wanted])


def test_logits_in_several_losses(device):
    levels, labels = _levels(device)
    others = torch.where(labels == 3, 0, 3)
    (value, first), (other, second) = _exact(levels, labels), _exact(levels, others)
    a, b = sigmoid_bce_all(levels, labels), sigmoid_bce_all(levels, others)
    loss = a + 2 * b + sum(x.square().sum() for x in levels)
    loss.backward()
    assert (a.item(), b.item()) == pytest.approx((value, other), rel=1e-6)
    expected = [v + 2 * w + 2 * x.cpu() for v, w, x in zip(first, second, levels)]
    _assert_gradients(levels, [x.detach() for x in expected])


def test_one_tensor_as_two_levels(device):
    (_, level), labels = _levels(device)
    labels = labels[:, :12]
    _, (a, b) = _exact([level, level], labels)
    sigmoid_bce_all([level, level], labels).backward()
    _assert_gradients([level], [a + b])


def test_backward_twice_where_the_graph_is_kept(device):
    levels, labels = _levels(device)
    _, wanted = _exact(levels, labels)
    loss = sigmoid_bce_all(levels, labels)
    loss.backward(retain_graph=True)
    loss.backward()
    _assert_gradients(levels, [2 * w for w in wanted])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_only_some_levels_need_a_gradient(device):
    levels, labels = _levels(device)
    _, (_, wanted) = _exact(levels, labels)
    levels[0] = levels[0].detach()
    sigmoid_bce_all(levels, labels).backward()
    assert levels[0].grad is None
    _assert_gradients(levels[1:], [wanted])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradient(device, mode):
    levels, labels = _levels(device)
    value, _ = _exact(levels, labels)
    with mode():
        loss = sigmoid_bce_all(levels, labels)
    assert not loss.requires_grad and loss.item() == pytest.approx(value, rel=1e-6)
    frozen = sigmoid_bce_all([x.detach() for x in levels], labels)
    assert not frozen.requires_grad and frozen.item() == loss.item()


@pytest.mark.parametrize("changed", ["logits", "labels"])
def test_what_changed_since_the_forward_pass_gives_no_wrong_gradient(device, changed):
    levels, labels = _levels(device)
    _, wanted = _exact(levels, labels)
    outputs = [x * 1 for x in levels]
    loss = sigmoid_bce_all(outputs, labels)
    with torch.no_grad():
        (labels if changed == "labels" else outputs[0]).fill_(-1)
    try:
        loss.backward()
    except RuntimeError as error:  # as autograd has it for what it saved
        assert "modified by an inplace operation" in str(error)
        return
    _assert_gradients(levels, wanted)


def test_a_second_derivative_is_refused(device):
    levels, labels = _levels(device)
    loss = sigmoid_bce_all(levels, labels)
    with pytest.raises(RuntimeError, match="twice|second derivative"):
        gradients = torch.autograd.grad(loss, levels, create_graph=True)
        # Else this would be the gradient of the loss alone.
        (loss + sum(g.square().sum() for g in gradients)).backward()


def test_a_second_derivative_by_a_later_factor_is_refused(device):
    levels, labels = _levels(device)
    factor = torch.ones((), device=device, requires_grad=True)
    with pytest.raises(RuntimeError, match="twice|second derivative"):
        gradients = torch.autograd.grad(
            factor * sigmoid_bce_all(levels, labels), levels, create_graph=True
        )
        sum(g.square().sum() for g in gradients).backward()


@pytest.mark.parametrize(
    ("dtype", "cast"),
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
    ],
)
def test_autocast_changes_no_bit(device, dtype, cast):
    levels, labels = _levels(device, dtype, mean=-11.5)
    plain = sigmoid_bce_all(levels, labels)
    gradients = torch.autograd.grad(3 * plain, levels)
    norm = sigmoid_bce_gradient_norm(levels, labels)
    with torch.autocast(device, dtype=cast):
        loss = sigmoid_bce_all(levels, labels)
        under = torch.autograd.grad(3 * loss, levels)
        assert torch.equal(sigmoid_bce_gradient_norm(levels, labels), norm)
    assert loss.dtype == torch.float32 and torch.equal(loss, plain)
    assert all(torch.equal(a, b) for a, b in zip(gradients, under))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile(device, backend):
    levels, labels = _levels(device)
    value, wanted = _exact([2 * x for x in levels], labels)

    @torch.compile(backend=backend)
    def scaled_loss(a, b):
        return 3 * sigmoid_bce_all([2 * a, 2 * b], labels)

    torch._dynamo.reset()
    loss = scaled_loss(*levels)
    loss.backward()
    assert loss.item() == pytest.approx(3 * value, rel=1e-6)
    _assert_gradients(levels, [6 * w for w in wanted], atol=2e-6)


def _retinanet_case(device, dtype, size):
    """A level of 9 anchors and 80 classes; 1 row of 500 is foreground, 1 of 250 ignored."""
    num_rows = 9 * size[0] * size[1]
    logits = torch.full((1, 9 * 80, *size), -11.5, dtype=dtype, device=device)
    labels = torch.full((1, num_rows), 80, device=device)
    labels[:, ::500] = 3
    labels[:, 1::250] = -1
    return logits.requires_grad_(), labels


def test_little_is_held_between_forward_and_backward(device):
    logits, labels = _retinanet_case(device, torch.float16, (4, 4))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        loss = sigmoid_bce_all([logits], labels)
    saved += _tensors(list(vars(loss.grad_fn).values()))
    held = {x.data_ptr(): x.untyped_storage().nbytes() for x in saved}
    size = held.pop(logits.data_ptr())
    assert size == logits.untyped_storage().nbytes()
    assert 0 < sum(held.values()) < 0.1 * size


def _tensors(x):
    if isinstance(x, torch.Tensor):
        return [x]
    return [t for y in x for t in _tensors(y)] if isinstance(x, (list, tuple)) else []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peak_memory_on_the_cpu(monkeypatch, dtype):
    logits, labels = _retinanet_case("cpu", dtype, (64, 88))
    # As it is to the logits of ten images of 800 x 1333.
    monkeypatch.setattr(sigmoid_bce_torch, "PIECE", logits.numel() // 150)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        sigmoid_bce_all([logits], labels).backward()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    changes = torch.tensor([e.nbytes() for e in events])
    peak = changes.cumsum(0).max().item() / logits.untyped_storage().nbytes()
    assert 1 <= peak < 1.15  # the gradient is 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peak_memory_on_a_gpu(dtype):
    pytest.importorskip("triton", reason="Triton is not installed")
    logits, labels = _retinanet_case("cuda", dtype, (64, 88))
    sigmoid_bce_all([logits], labels)  # compiles
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = sigmoid_bce_all([logits], labels)
    held = torch.cuda.memory_allocated() - before
    loss.backward()
    size = logits.untyped_storage().nbytes()
    assert held < 0.1 * size
    assert size <= torch.cuda.max_memory_allocated() - before < 1.15 * size
