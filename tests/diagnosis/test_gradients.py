"""The gradients measured, against autograd of the whole model and against closed forms.

Autograd runs here through the real backbone, with hooks at its outputs and at the heads', while
the probe cuts the graph there.
"""

import math

import pytest
import torch
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.utils.events import EventStorage

from helpers.gradients_cases import flat
from helpers.guided_detectors import KINDS, STOCK, detector, heads_of, inputs_of
from helpers.probed import BUILT
from helpers.tiny import batch, stock_retinanet, tiny_retinanet
from helpers.tiny_detectors import rcnn_batch, tiny_rcnn
from sampling_free.diagnosis.gradients import PARTS, measure

NUMS = [(3, 2), (2, 0), (0, 0)]


class Whole:
    """A training step with its graph: losses, and gradients by autograd."""

    def __init__(self, model, kind, inputs):
        self.outputs, self.features, handles = {}, [], []
        keep = model.backbone.register_forward_hook(
            lambda module, args, out: self.features.extend(out.values())
        )
        handles.append(keep)
        for module, *_ in heads_of(model, kind):
            handles.append(module.register_forward_hook(self._keep))
        with EventStorage():
            self.losses = model(inputs)
        for handle in handles:
            handle.remove()

    def _keep(self, module, args, out):
        """The last call counts: OHEM's first is without gradient."""
        self.outputs[module] = [list(x) if isinstance(x, (list, tuple)) else [x] for x in out]

    def gradients(self, name, tensors):
        found = torch.autograd.grad(
            self.losses[name], tensors, retain_graph=True, allow_unused=True
        )
        return [torch.zeros_like(x) if g is None else g for g, x in zip(found, tensors)]

    def at_outputs(self, name, tensors):
        return sum(g.abs().sum().item() for g in self.gradients(name, tensors))

    def at_features(self, name):
        squares = sum(g.double().square().sum().item() for g in self.gradients(name, self.features))
        return math.sqrt(squares)


@pytest.mark.parametrize("name", BUILT)
def test_norms_losses_and_parts_are_those_of_autograd(name):
    kind, make = BUILT[name]
    for nums in NUMS:
        model, inputs = make().train(), inputs_of(kind, *nums)
        torch.manual_seed(7)  # of the samplers
        found = measure(model, inputs, with_parts=True)
        torch.manual_seed(7)
        whole = Whole(model, kind, inputs)
        assert found.losses == pytest.approx({k: v.item() for k, v in whole.losses.items()})
        heads = heads_of(model, kind)
        assert len(found.heads) == len(heads)
        close = dict(rel=1e-4, abs=1e-9)
        for head, (module, names, *_) in zip(found.heads, heads):
            assert [head.cls_name, *head.loc_names] == names
            for term, tensors in zip(names, whole.outputs[module]):
                expected = whole.at_outputs(term, tensors)
                assert head.outputs[term] == pytest.approx(expected, **close), term
                expected = whole.at_features(term)
                assert head.features[term] == pytest.approx(expected, **close), term
            cls = head.cls_name
            parts = [head.outputs[f"{cls}/{p}"] for p in PARTS]
            assert sum(parts) == pytest.approx(head.outputs[cls], **close)
            assert sum(head.loss_parts.values()) == pytest.approx(found.losses[cls], **close)
            assert min(parts) >= 0 and min(head.loss_parts.values()) >= 0
            if nums == NUMS[0]:
                assert min(parts) > 0 and head.num_foreground > 0
        known = {x for _, names, *_ in heads for x in names}
        other = {x for x in whole.losses if x not in known and "guide" not in x}
        assert found.other_features.keys() == other
        for term in other:
            expected = whole.at_features(term)
            assert found.other_features[term] == pytest.approx(expected, **close), term


@pytest.mark.parametrize("guide", ["iteration", "gradient", "frozen", 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_r_is_that_of_the_step_that_follows(kind, guide):
    model, inputs = detector(kind, guide).train(), inputs_of(kind, 3, 2)
    found = measure(model, inputs)
    with EventStorage() as storage:
        model(inputs)
        latest = {k: v for k, (v, _) in storage.latest().items()}
    names = [r for *_, r, _ in heads_of(model, kind)]
    assert [head.ratio for head in found.heads] == [latest[r] for r in names]


@pytest.mark.parametrize("kind", [*STOCK, "faster"])
def test_without_a_guide_there_is_no_r(kind):
    model = STOCK[kind]() if kind in STOCK else tiny_rcnn(kind, stock=True)
    found = measure(model.train(), inputs_of(kind, 2, 1))
    assert [head.ratio for head in found.heads] == [None] * len(found.heads)


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("prior", [1e-5, 0.01, 0.5])
def test_of_one_score_for_all_gradients_and_losses_are_known(prior, num_classes):
    model = flat(tiny_retinanet(guide=1.0, prior=prior, num_classes=num_classes), prior)
    (head,) = measure(model, batch(3, 2, num_classes=num_classes), with_parts=True).heads
    n, k = head.num_foreground, num_classes
    background = head.num_valid - n
    assert n > 1 and background > 100
    # |sigmoid(x) - y| of every sample and class; L1 pushes by 1 at each coordinate.
    assert head.outputs["loss_cls/foreground"] == pytest.approx(1 - prior + (k - 1) * prior)
    assert head.outputs["loss_cls/background"] == pytest.approx(background * k * prior / n)
    assert head.outputs["loss_box_reg"] == pytest.approx(4)
    assert head.gradient_ratio == pytest.approx(head.outputs["loss_cls"] / 4)
    right, wrong = -math.log(prior), -math.log1p(-prior)
    assert head.loss_parts["foreground"] == pytest.approx(right + (k - 1) * wrong, rel=1e-5)
    assert head.loss_parts["background"] == pytest.approx(background * k * wrong / n, rel=1e-4)
    assert head.cross_entropy == pytest.approx(sum(head.loss_parts.values()), rel=1e-5)
    assert head.scores == pytest.approx({"foreground": prior, "background": prior})
    assert head.optimal_prior == pytest.approx(n / (head.num_valid * k))
    assert head.saturated == 0


def test_at_the_best_prior_foreground_and_background_push_alike():
    model = tiny_retinanet(guide=1.0, prior=0.5)
    best = measure(model.train(), batch(3, 2)).heads[0].optimal_prior
    (head,) = measure(flat(model, best), batch(3, 2), with_parts=True).heads
    # (N K - N_f) pi / N_f and 1 - pi: all but the foreground's wrong classes is background.
    assert head.outputs["loss_cls/background"] == pytest.approx(1, rel=0.02)
    assert head.outputs["loss_cls/foreground"] == pytest.approx(1, rel=0.02)
    assert head.cross_entropy == pytest.approx(1 - math.log(best), rel=0.01)


@pytest.mark.parametrize("alpha", [0.25, -1])
@pytest.mark.parametrize("gamma", [2.0, 0.0, 1.5])
@pytest.mark.parametrize("prior", [0.01, 0.3])
def test_focal_loss_pushes_by_its_formula(alpha, gamma, prior):
    kwargs = dict(focal_loss_alpha=alpha, focal_loss_gamma=gamma)
    model = flat(stock_retinanet(**kwargs), prior)
    found = measure(model, batch(3, 2), with_parts=True)
    (head,) = found.heads
    n, k = head.num_foreground, 3
    normalizer = 0.9 * 100 + 0.1 * n  # Detectron2's running number after its first batch

    def loss(p_t, weight):
        return weight * (1 - p_t) ** gamma * -math.log(p_t)

    def push(p_t, weight):
        return weight * (1 - p_t) ** gamma * (1 - p_t - gamma * p_t * math.log(p_t))

    zeros = (1 - prior, 1 - alpha if alpha >= 0 else 1)
    one = (prior, alpha if alpha >= 0 else 1)
    background = (head.num_valid - n) * k
    for function, numbers in (
        (push, [head.outputs[f"loss_cls/{p}"] for p in PARTS]),
        (loss, [head.loss_parts[p] for p in PARTS]),
    ):
        foreground = n * (function(*one) + (k - 1) * function(*zeros))
        expected = [foreground / normalizer, background * function(*zeros) / normalizer]
        assert numbers == pytest.approx(expected, rel=2e-4)
    assert head.is_focal == (gamma > 0)
    assert found.losses["loss_cls"] == pytest.approx(sum(head.loss_parts.values()))


@pytest.mark.parametrize("stock", [False, True])
def test_softmax_pushes_by_twice_what_is_missing(stock, monkeypatch):
    model = tiny_rcnn(stock=stock, **({} if stock else {"rpn": {"prior": 0.01}}))
    if not stock:
        model.roi_heads.box_predictor.guide = type(detector("retinanet", 1.0).guide)(1.0)
    seen, losses = [], FastRCNNOutputLayers.losses

    def spy(self, predictions, proposals):
        labels = torch.cat([p.gt_classes for p in proposals])
        seen.append((predictions[0].detach(), labels))
        return losses(self, predictions, proposals)

    monkeypatch.setattr(FastRCNNOutputLayers, "losses", spy)
    _, head = measure(model.train(), rcnn_batch(3, 2), with_parts=True).heads
    ((logits, labels),) = seen
    right = logits.double().softmax(dim=1)[torch.arange(len(labels)), labels]
    foreground = labels < 3
    normalizer = len(labels) if stock else int(foreground.sum())
    masks = dict(zip(PARTS, (foreground, ~foreground)))
    for part, mask in masks.items():
        push = 2 * (1 - right[mask]).sum().item() / normalizer
        assert head.outputs[f"loss_cls/{part}"] == pytest.approx(push, rel=1e-4)
        loss = -right[mask].log().sum().item() / normalizer
        assert head.loss_parts[part] == pytest.approx(loss, rel=1e-4)
    assert head.is_softmax and not head.takes_all_anchors
    assert head.cross_entropy == pytest.approx(
        -right.log().sum().item() / int(foreground.sum()), rel=1e-4
    )
    assert head.scores["foreground"] == pytest.approx(right[foreground].mean().item(), rel=1e-4)


@pytest.mark.parametrize("stock", [False, True])
def test_the_foreground_part_is_what_is_left_when_no_background_is_labeled(stock, monkeypatch):
    """An oracle without masks of gradients: the background's anchors become ignored."""
    model = stock_retinanet() if stock else detector("retinanet", 0.5)
    model.train().loss_normalizer = 50.0  # of Detectron2's class, which changes it
    inputs = batch(3, 2)
    (head,) = measure(model, inputs, with_parts=True).heads
    losses, gradients = [], []
    label = model.label_anchors
    for only_foreground in (False, True):

        def relabel(*args, only_foreground=only_foreground):
            labels, boxes = label(*args)
            background = 3 if only_foreground else 99
            return [x.masked_fill(x == background, -1) for x in labels], boxes

        monkeypatch.setattr(model, "label_anchors", relabel)
        model.loss_normalizer = 50.0
        whole = Whole(model, "retinanet", inputs)
        losses.append(whole.losses["loss_cls"].item())
        gradients.append(whole.gradients("loss_cls", whole.features))
    both, foreground = gradients
    background = [x - y for x, y in zip(both, foreground)]
    for part, tensors in zip(PARTS, (foreground, background)):
        norm = math.sqrt(sum(x.double().square().sum().item() for x in tensors))
        assert head.features[f"loss_cls/{part}"] == pytest.approx(norm, rel=1e-3)
    shares = [losses[1], losses[0] - losses[1]]
    assert list(head.loss_parts.values()) == pytest.approx(shares, rel=1e-4, abs=1e-6)
