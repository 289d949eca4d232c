"""The gradients of sigmoid_bce_all: later factors, several uses, memory."""

import pytest
import torch

from helpers.classification_loss_cases import exact_of, levels_of, rows_of
from sampling_free.method.classification_loss import sigmoid_bce_all, sigmoid_bce_gradient_norm
from sampling_free.method.kernels import sigmoid_bce_torch


def _assert_gradients(levels, wanted, atol=1e-6):
    for x, w in zip(levels, wanted):
        torch.testing.assert_close(x.grad.cpu().double(), w, rtol=1e-6, atol=atol)


def test_gradient_norm_is_the_l1_norm_of_the_gradient(device):
    levels, labels = levels_of(device)
    _, wanted = exact_of(levels, labels)
    expected = sum(w.abs().sum().item() for w in wanted)
    for logits in (levels, rows_of(levels)):
        norm = sigmoid_bce_gradient_norm(logits, labels)
        assert norm.item() == pytest.approx(expected, rel=1e-6) and not norm.requires_grad


@pytest.mark.parametrize("factor", [0.0, -2.5])
def test_later_factors_of_the_loss(device, factor):
    levels, labels = levels_of(device)
    _, wanted = exact_of(levels, labels)
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


def test_backward_twice_where_the_graph_is_kept(device):
    levels, labels = levels_of(device)
    _, wanted = exact_of(levels, labels)
    loss = sigmoid_bce_all(levels, labels)
    loss.backward(retain_graph=True)
    loss.backward()
    _assert_gradients(levels, [2 * w for w in wanted])
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_only_some_levels_need_a_gradient(device):
    levels, labels = levels_of(device)
    _, (_, wanted) = exact_of(levels, labels)
    levels[0] = levels[0].detach()
    sigmoid_bce_all(levels, labels).backward()
    assert levels[0].grad is None
    _assert_gradients(levels[1:], [wanted])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradient(device, mode):
    levels, labels = levels_of(device)
    value, _ = exact_of(levels, labels)
    with mode():
        loss = sigmoid_bce_all(levels, labels)
    assert not loss.requires_grad and loss.item() == pytest.approx(value, rel=1e-6)
    frozen = sigmoid_bce_all([x.detach() for x in levels], labels)
    assert not frozen.requires_grad and frozen.item() == loss.item()


@pytest.mark.parametrize("changed", ["logits", "labels"])
def test_what_changed_since_the_forward_pass_gives_no_wrong_gradient(device, changed):
    levels, labels = levels_of(device)
    _, wanted = exact_of(levels, labels)
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
    levels, labels = levels_of(device)
    loss = sigmoid_bce_all(levels, labels)
    with pytest.raises(RuntimeError, match="twice|second derivative"):
        gradients = torch.autograd.grad(loss, levels, create_graph=True)
        # Else this would be the gradient of the loss alone.
        (loss + sum(g.square().sum() for g in gradients)).backward()


@pytest.mark.parametrize(
    ("dtype", "cast"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float16),
    ],
)
def test_autocast_changes_no_bit(device, dtype, cast):
    levels, labels = levels_of(device, dtype, mean=-11.5)
    plain = sigmoid_bce_all(levels, labels)
    gradients = torch.autograd.grad(3 * plain, levels)
    norm = sigmoid_bce_gradient_norm(levels, labels)
    with torch.autocast(device, dtype=cast):
        loss = sigmoid_bce_all(levels, labels)
        under = torch.autograd.grad(3 * loss, levels)
        assert torch.equal(sigmoid_bce_gradient_norm(levels, labels), norm)
    assert loss.dtype == torch.float32 and torch.equal(loss, plain)
    assert all(torch.equal(a, b) for a, b in zip(gradients, under))


def test_torch_compile(device):
    levels, labels = levels_of(device)
    value, wanted = exact_of([2 * x for x in levels], labels)

    @torch.compile(backend="aot_eager")
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
