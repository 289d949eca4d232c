"""benchmarks/traffic.py against counts by hand, and the loss against what it may move and hold."""

import warnings

import pytest
import torch
from torch.nn import functional as F

from bench_loss import footprint
from made_up import level_sizes, made_up_labels, made_up_logits
from rivals import LOSSES
from traffic import Memory, Traffic, memory_of, synchronizations

N = 1000  # float32 numbers, 4000 bytes


def moved(function):
    with Traffic() as traffic:
        function()
    return traffic.bytes


a, b, out = torch.rand(N), torch.rand(N), torch.empty(N)
few = torch.arange(10)  # int64, 80 bytes
BY_HAND = {
    "two read, one written": (lambda: a + b, 3 * 4 * N),
    "in place": (lambda: out.mul_(2), 2 * 4 * N),
    "into another": (lambda: torch.add(a, b, out=out), 3 * 4 * N),
    "copied": (lambda: out.copy_(a), 2 * 4 * N),
    "filled": (lambda: out.zero_(), 4 * N),
    "summed": (lambda: a.sum(), 4 * N + 4),
    "another type": (lambda: a.double(), (4 + 8) * N),
    "views": (lambda: a.view(10, 100).t()[2:].unsqueeze(0), 0),
    "allocated": (lambda: torch.empty_like(a), 0),
    "expanded": (lambda: a + torch.ones(1).expand(N), 4 + 4 + 2 * 4 * N),  # ones, then the sum
    "picked": (lambda: a[few], 80 + 2 * 40),
    "put": (lambda: out.index_fill_(0, few, 0), 80 + 80),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_bytes_of_an_operator_are_those_counted_by_hand(name):
    function, expected = BY_HAND[name]
    assert moved(function) == expected


def test_the_backward_pass_is_counted():
    x = torch.rand(N, requires_grad=True)
    forward = moved(lambda: F.softplus(x).sum())
    both = moved(lambda: torch.autograd.grad(F.softplus(x).sum(), x))
    assert forward == (2 * 4 + 4) * N + 4
    # One for the loss, then its gradient (expanded) and x are read and x's gradient written.
    assert both == forward + 2 * 4 + 4 + 2 * 4 * N


def test_memory_is_what_lives_at_a_time():
    old = [torch.rand(N)]

    def chain():
        y = a + b
        old.clear()  # it was there before
        y = y + b
        return y.view(-1)

    assert memory_of(chain, "cpu") == Memory(peak=2 * 4 * N, held=4 * N)


def test_a_graph_holds_what_its_backward_pass_needs():
    x = torch.rand(N, requires_grad=True)
    assert memory_of(lambda: x.exp().sum(), "cpu") == Memory(peak=4 * N + 4, held=4 * N + 4)
    assert memory_of(lambda: torch.autograd.grad(x.exp().sum(), x), "cpu").held == 4 * N


def test_our_loss_moves_little_and_needs_the_gradient_and_little_else():
    sizes = level_sizes((400, 672))  # at RetinaNet's proportions
    levels = made_up_logits(sizes, 1, 9 * 80, "cpu")
    labels = made_up_labels(1, 9 * sum(h * w for h, w in sizes), 80, "cpu")
    found = footprint(LOSSES["fused"], levels, labels, 80, "cpu")
    assert found["bytes_per_logit"] <= 32
    assert found["peak"] <= 1.15 and found["held"] <= 0.1


def test_without_a_gpu_nothing_waits_for_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert synchronizations(lambda: None) is None


def test_each_wait_is_counted_and_other_warnings_are_not(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def step():
        for _ in range(3):  # one place, as in a loop over images
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    assert synchronizations(step) == 3
    assert modes == ["warn", "default"]
