"""benchmarks/: the rivals compute what they should, and every benchmark writes whole rows.

No test asks how long anything took.
"""

import math

import pytest
import torch
from detectron2.utils.events import EventStorage

import bench_iteration
import bench_loss
import bench_roi
import bench_rpn
import rivals
import timing
from helpers.benchmarks_cases import NUMBERS, check
from helpers.tiny import anchor_order

K, A = 4, 2


SIZES = [(3, 5), (2, 2)]


def head_outputs(dtype=torch.float64, seed=0):
    """Logits of two levels, and labels with every kind of row."""
    torch.manual_seed(seed)
    levels = [torch.randn(2, A * K, *s, dtype=dtype).mul_(3).requires_grad_() for s in SIZES]
    labels = torch.randint(-1, K + 1, (2, A * sum(h * w for h, w in SIZES)))
    return levels, labels


def cross_entropy(x, is_right):
    return softplus(-x) if is_right else softplus(x)


def softplus(x):
    return torch.logaddexp(x, torch.zeros_like(x))


def focal_loss(x, is_right):
    """arXiv 1708.02002, equation 5: -alpha_t (1 - p_t)^gamma log(p_t)."""
    p = 1 / (1 + torch.exp(-x))
    p_t, alpha_t = (p, 0.25) if is_right else (1 - p, 0.75)
    return -alpha_t * (1 - p_t) ** 2 * torch.log(p_t)


def by_hand(levels, labels, loss_of_one):
    """The sum over the valid rows, number by number in float64."""
    rows_of_levels = torch.cat([anchor_order(x, K) for x in levels], dim=1)
    total = sum(x.sum() for x in levels) * 0
    for x, label in zip(rows_of_levels.flatten(0, 1), labels.flatten().tolist()):
        if label >= 0:
            total = total + sum(loss_of_one(x[k], k == label) for k in range(K))
    return total


@pytest.mark.parametrize("name", rivals.LOSSES)
def test_every_rival_has_the_value_and_the_gradient_of_its_formula(name, monkeypatch):
    monkeypatch.setattr(rivals, "_compiled_formula", lambda: rivals._formula)  # takes long
    exact, labels = head_outputs()
    expected = by_hand(exact, labels, focal_loss if "focal" in name else cross_entropy)
    expected_gradients = torch.autograd.grad(expected, exact)
    levels = [x.detach().float().requires_grad_() for x in exact]
    loss = rivals.LOSSES[name](levels, labels, K)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for x, y in zip(torch.autograd.grad(loss, levels), expected_gradients):
        torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", rivals.LOSSES)
def test_in_half_precision_they_are_computed_in_float32(name, monkeypatch):
    monkeypatch.setattr(rivals, "_compiled_formula", lambda: rivals._formula)
    levels, labels = head_outputs(torch.bfloat16)
    loss = rivals.LOSSES[name](levels, labels, K)
    same = rivals.LOSSES[name]([x.detach().float().requires_grad_() for x in levels], labels, K)
    assert loss.item() == pytest.approx(same.item(), rel=1e-6)
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(loss, levels))


def test_functions_take_turns_and_another_begins_each_round():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = timing.in_turn(functions, seconds=0, least=3, warm_up=2)
    assert calls == list("abab" + "abbaab")
    assert [len(times[name]) for name in "ab"] == [3, 3]
    assert len(timing.in_turn(functions, seconds=math.inf, most=7)["a"]) == 7


def test_ratios_are_of_the_same_round():
    found = timing.summary([1e-3, 4e-3, 9e-3], [1e-3, 2e-3, 3e-3])
    assert found["rounds"] == 3 and found["ms"] == pytest.approx(4)
    assert found["ratio"] == pytest.approx(2)  # of 1, 2, 3; the medians' is 2 by chance
    assert found["ratio_10"] == pytest.approx(1.2) and found["ratio_90"] == pytest.approx(2.8)
    assert timing.summary([1, 9, 4], [1, 3, 4])["ratio"] == pytest.approx(1)


def one_round(functions, seconds, **settings):
    return timing.in_turn(functions, 0, least=1, most=1, warm_up=0)


def test_the_losses_are_measured(monkeypatch):
    monkeypatch.setattr(rivals, "_compiled_formula", lambda: rivals._formula)
    found = bench_loss.measure(bench_loss.cases("cpu", True)[0], "cpu", 0)
    assert [r["loss"] for r in found] == [*rivals.LOSSES, "copy"]
    check(found, (*NUMBERS, "floors", "logits"))
    check(found[:-1], ("peak", "held"))
    assert found[0]["ratio"] == 1


def test_the_rpn_is_measured():
    for case in bench_rpn.cases("cpu", True):
        found = bench_rpn.measure(case, "cpu", 0)
        assert [r["variant"] for r in found] == ["256 sampled", "every anchor"]
        check(found, (*NUMBERS, "peak_mb", "anchors"))


def test_the_objectness_loss_alone_is_the_one_in_the_losses_of_detectron2():
    (case, _) = bench_rpn.cases("cpu", True)
    config, overrides = bench_rpn.CONFIGS["256 sampled"]
    stock = bench_rpn.instantiate(bench_rpn.load_config(config, overrides).model.proposal_generator)
    config, overrides = bench_rpn.CONFIGS["every anchor"]
    ours = bench_rpn.instantiate(bench_rpn.load_config(config, overrides).model.proposal_generator)
    outputs = bench_rpn.RawOutputs(ours, case, "cpu")
    torch.manual_seed(0)
    alone = outputs.sampled_objectness(stock)
    stock.loss_weight = {"loss_rpn_loc": 0.0}
    torch.manual_seed(0)
    with EventStorage():
        both = outputs.losses(stock)
    assert alone.item() == pytest.approx(both.item() * stock.batch_size_per_image, rel=1e-5)
    labels = torch.stack(outputs.gt_labels)
    assert (labels == 1).any() and (labels == 0).any() and (labels == -1).any()
    rows_of_levels = torch.cat([anchor_order(x, 1) for x in outputs.logits], dim=1)[..., 0]
    signs = torch.where(labels == 1, -1.0, 1.0)
    expected = softplus(signs * rows_of_levels.double())[labels >= 0].sum()
    assert outputs.objectness_of_all().item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_iteration_is_measured(monkeypatch):
    monkeypatch.setattr(bench_iteration, "in_turn", one_round)
    case = bench_iteration.cases("cpu", True)[0]
    assert case["detector"] == "retinanet/retinanet"
    found = bench_iteration.measure(case, "cpu", 0)
    assert [r["variant"] for r in found] == ["baseline", "sampling-free"]
    check(found, (*NUMBERS, "peak_mb"))


def test_proposals_are_those_of_the_first_stage():
    with EventStorage() as storage:
        storage.put_scalar("roi_head/num_fg_samples", 7)
        storage.put_scalar("roi_head/num_bg_samples", 990)
        storage.put_scalar("stage1/roi_head/num_fg_samples", 5)
        storage.put_scalar("stage1/roi_head/num_bg_samples", 992)
    assert bench_iteration.proposals(storage) == {"proposals": 997, "foreground": 7}
    assert bench_iteration.proposals(EventStorage()) == {}


def test_the_roi_heads_are_measured(monkeypatch):
    monkeypatch.setattr(bench_roi, "NUM_PROPOSALS", 4)
    monkeypatch.setattr(bench_roi, "COPIES", 1)
    monkeypatch.setattr(bench_roi, "in_turn", one_round)
    case = bench_roi.cases("cpu", True)[-1]
    assert case["heads"] == "box and mask" and case["data"] == "made up"
    found = bench_roi.measure(case, "cpu", 0)
    assert [r["variant"] for r in found] == ["512 sampled", "all", "all, 128 masks"]
    check(found, (*NUMBERS, "peak_mb", "foreground"))
