"""How often the losses wait for a GPU: never more often than those of the class they replace.

With a GPU PyTorch itself counts. Without one the calls are counted that would wait; there
``sigmoid_bce_all``, whose CPU kernel may do as it likes, is replaced by a formula without such.
"""

import importlib
import warnings

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.tiny import batch, stock_retinanet, tiny_retinanet
from helpers.tiny_detectors import rcnn_batch, stock_fcos, tiny_fcos, tiny_rcnn
from helpers.tiny_points import points_model
from sampling_free import ATSS, SamplingFreeATSS, sigmoid_bce_all
from sampling_free.method.classification_loss import sigmoid_bce_gradient_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Their result, or its size, has to be known on the CPU.
OPERATORS = {
    "_local_scalar_dense",  # item(), bool(), int(), float()
    "_unique2",
    "bincount",
    "equal",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
}
# What no operator shows on the CPU: copies there, and from lists of numbers.
CALLS = {"as_tensor", "cpu", "numpy", "tensor", "tolist"}


class _Operators(TorchDispatchMode):
    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in OPERATORS:
            self.waits.append(name)
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            masks = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
            self.waits += [f"{name} with a mask"] * len(masks)
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, before = getattr(func, "__name__", ""), len(self.waits)
        made_of_a_tensor = name in ("as_tensor", "tensor") and isinstance(args[0], torch.Tensor)
        if name in CALLS and not made_of_a_tensor:
            self.waits.append(name)
        result = func(*args, **(kwargs or {}))
        if name == "one_hot":
            del self.waits[before:]  # it looks at its argument on the CPU alone
        return result


def waits_on_the_cpu(run):
    waits = []
    with _Operators(waits), _Calls(waits):
        run()
    return waits


def waits_on_a_gpu(run):
    run()  # compiles the kernel
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [str(x.message) for x in caught if "synchronizing CUDA" in str(x.message)]


waits_of = waits_on_a_gpu if DEVICE == "cuda" else waits_on_the_cpu


@pytest.mark.parametrize(
    ("run", "num"),
    [
        (lambda x: x[x > 0], 1),
        (lambda x: x.clone().index_put_((x > 0,), x[:1]), 1),
        (lambda x: x.nonzero(as_tuple=True), 1),
        (lambda x: x.sum().item(), 1),
        (lambda x: float(x[0]) + int(x[1]), 2),
        (lambda x: x.tolist(), 1),
        (lambda x: torch.tensor([1.0, 2.0], device=x.device), 1),
        (lambda x: x.unique(), 1),
        (lambda x: torch.where(x > 0, x, 0), 0),
        (lambda x: x[torch.arange(2, device=x.device)].sum().double(), 0),
        (lambda x: F.one_hot((x > 0).long(), 3), 0),
    ],
)
def test_what_waits_is_counted(run, num):
    x = torch.linspace(-1, 1, 4, device=DEVICE)
    assert len(waits_of(lambda: run(x))) >= num
    if num == 0 or DEVICE == "cpu":  # on a GPU one call may wait more than once
        assert len(waits_of(lambda: run(x))) == num


def retinanets():
    return stock_retinanet(), tiny_retinanet(prior=0.01), batch


def fcos():
    return stock_fcos(), tiny_fcos(prior=0.01), batch


def atss():
    return points_model(ATSS), points_model(SamplingFreeATSS), batch


def rpns():
    return tiny_rcnn(stock=True), tiny_rcnn(rpn={"prior": 0.01}), rcnn_batch


def softplus_sum(levels, labels):
    return sum(F.softplus(x).sum() for x in levels)


def waits_of_losses(model, inputs, monkeypatch):
    """What waits in the model's own ``losses`` and in their way back to the head's outputs."""
    head = getattr(model, "proposal_generator", model)
    losses_of, waits = head.losses, []

    def losses(*args):
        found = {}

        def run():
            found.update(losses_of(*args))
            outputs = [x for xs in args if isinstance(xs, list) for x in xs]
            outputs = [x for x in outputs if getattr(x, "requires_grad", False)]
            torch.autograd.grad(sum(found.values()), outputs, retain_graph=True)

        waits.extend(waits_of(run))
        return found

    monkeypatch.setattr(head, "losses", losses)
    with EventStorage():
        model.to(DEVICE).train()(inputs)
    return waits


@pytest.mark.parametrize(
    "models, num_objects",
    [(retinanets, (3,)), (retinanets, (2, 4)), (fcos, (2, 4)), (atss, (3,)), (rpns, (2, 4))],
)
def test_losses_wait_no_more_often_than_those_they_replace(monkeypatch, models, num_objects):
    if DEVICE == "cpu":
        for name in ("retinanet", "points", "rpn"):
            module = importlib.import_module(f"sampling_free.detectors.{name}")
            monkeypatch.setattr(module, "sigmoid_bce_all", softplus_sum)
    else:
        pytest.importorskip("triton", reason="Triton is not installed")
    stock, ours, make_batch = models()
    inputs = make_batch(*num_objects)
    before = waits_of_losses(stock, inputs, monkeypatch)
    after = waits_of_losses(ours, inputs, monkeypatch)
    assert 0 < len(after) <= len(before), f"{after} for {before}"


def test_the_triton_kernel_is_launched_without_waiting(monkeypatch):
    """All that surrounds its launches, forward and backward; on a GPU the launches too."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from sampling_free.method.kernels import sigmoid_bce_triton as kernel

    launches = []

    class Launched:
        def __getitem__(self, grid):
            return lambda *args: launches.append(args)

    if DEVICE == "cpu":
        monkeypatch.setattr("sampling_free.method.classification_loss.kernel_of", lambda _: kernel)
        monkeypatch.setattr(kernel, "_sigmoid_bce", Launched())
    sizes = [(7, 9), (4, 5)]
    levels = [torch.zeros(2, 15, *s, device=DEVICE, requires_grad=True) for s in sizes]
    labels = torch.full((2, 3 * 83), 5, device=DEVICE)
    factor = torch.tensor(2.0, device=DEVICE)

    def run():
        torch.autograd.grad(factor * sigmoid_bce_all(levels, labels), levels)
        sigmoid_bce_gradient_norm(levels, labels)

    assert waits_of(run) == []
    if DEVICE == "cpu":
        assert len(launches) == 3 * len(levels)
