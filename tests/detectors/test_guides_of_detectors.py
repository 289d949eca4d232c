"""Every detector with every guide, against autograd at the head's real outputs."""

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from helpers.guided_detectors import GUIDES, KINDS, STOCK, detector, heads_of, inputs_of
from helpers.tiny import train_step
from helpers.tiny_detectors import tiny_rcnn
from sampling_free.checkpoint.checkpointer import NamingCheckpointer, load_trained
from sampling_free.method.guides import FrozenGuide

PIXELS = (64, 96)


def by_autograd(model, kind, inputs):
    """{name of r: w |g_loc| / |g_cls|} of a model whose guide is 1, and its losses."""
    seen = {}

    def keep(module, arguments, outputs):
        groups = [x if isinstance(x, (list, tuple)) else [x] for x in outputs]
        for x in sum(map(list, groups), []):
            x.retain_grad()
        seen[module] = groups

    heads = heads_of(model, kind)
    for head, *_ in heads:
        head.register_forward_hook(keep)
    with EventStorage():
        losses = model.train()(inputs)
    ratios = {}
    for head, names, ratio, weight in heads:
        norms = []
        for i, name in enumerate(names):
            for x in seen[head][i]:
                x.grad = None
            losses[name].backward(retain_graph=True)
            norms.append(sum(x.grad.abs().sum().item() for x in seen[head][i]))
        box = norms[1] / 4
        locs = [box, *norms[2:]]
        ratios[ratio] = weight * sum(locs) / len(locs) / norms[0]
    return ratios, {k: v.item() for k, v in losses.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_matches_the_norms_at_the_heads_outputs(kind):
    inputs = inputs_of(kind, 3, 2)
    ratios, raw = by_autograd(detector(kind, 1.0), kind, inputs)
    losses, latest, _ = train_step(detector(kind, "gradient"), inputs)
    assert all(0 < r < 1e4 for r in ratios.values())
    for name, expected in ratios.items():
        assert latest[name] == pytest.approx(expected, rel=1e-4), name
    scaled = {names[0]: ratios[r] for _, names, r, _ in heads_of(detector(kind, 1.0), kind)}
    for name, value in raw.items():
        expected = pytest.approx(value * scaled.get(name, 1), rel=1e-4)
        assert losses[name].item() == expected, name


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_starts_with_half_of_each_of_iterations_losses(kind):
    inputs = inputs_of(kind, 3, 2)
    expected, numbers, _ = train_step(detector(kind, "iteration"), inputs)
    losses, latest, gradients = train_step(detector(kind, "frozen"), inputs)
    names = [n for _, names, *_ in heads_of(detector(kind, 1.0), kind) for n in names]
    for name, x in expected.items():
        assert losses[name].item() == pytest.approx(x.item() / (1 + (name in names)), rel=1e-5)
    of_guide = losses.keys() - expected.keys()
    assert len(of_guide) == len(heads_of(detector(kind, 1.0), kind))
    assert all("guide" in name and losses[name].item() == 0 for name in of_guide)
    assert latest == pytest.approx(numbers, nan_ok=True)
    learned = [g for name, g in gradients.items() if "guide" in name]
    # d/d log(sigma) of L / (2 sigma^2) + log(sigma) at sigma = 1: 1 - L
    found = sorted(1 - x for g in learned for x in g.tolist())
    assert found == pytest.approx(sorted(expected[n].item() for n in names), rel=1e-4, abs=1e-6)


VARIANTS = [
    ("retinanet", {"box_reg_loss_type": "giou"}),
    ("retinanet", {"box_reg_loss_weight": 0.25, "smooth_l1_beta": 0.5}),
    ("fcos", {"box_weight": "centerness"}),
    ("faster", {"agnostic": True}),
    ("faster", {"predictor": {"loss_weight": {"loss_cls": 3.0, "loss_box_reg": 0.25}}}),
    ("faster", {"predictor": {"box_reg_loss_type": "giou"}}),
    ("faster", {"rpn": {"loss_weight": {"loss_rpn_cls": 3.0, "loss_rpn_loc": 0.125}}}),
    ("faster", {"rpn": {"box_reg_loss_type": "giou"}}),
]


@pytest.mark.parametrize("kind, options", VARIANTS)
def test_gradient_takes_the_box_loss_that_is_configured(kind, options):
    inputs = inputs_of(kind, 3, 2)
    ratios, _ = by_autograd(detector(kind, 1.0, **options), kind, inputs)
    _, latest, _ = train_step(detector(kind, "gradient", **options), inputs)
    for name, expected in ratios.items():
        assert latest[name] == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "paa", "cascade"])
def test_gradient_needs_no_graph_of_the_model(kind):
    inputs = inputs_of(kind, 3, 2)
    _, expected, _ = train_step(detector(kind, "gradient"), inputs)
    frozen = detector(kind, "gradient")
    for name, p in frozen.named_parameters():
        if any(x in name for x in ("bbox_pred", "anchor_deltas", "bbox_subnet")):
            p.requires_grad_(False)
    without = detector(kind, "gradient").train()
    with EventStorage() as storage, torch.no_grad():
        without(inputs)
        latest = {k: v for k, (v, _) in storage.latest().items()}
    for found in (train_step(frozen, inputs)[1], latest):
        for *_, r, _ in heads_of(frozen, kind):
            assert found[r] == pytest.approx(expected[r], rel=1e-5)


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "paa", "faster", "c4"])
def test_mixed_precision_gives_about_the_same_r(kind):
    inputs = inputs_of(kind, 3, 2)
    _, exact, _ = train_step(detector(kind, "gradient"), inputs)
    with torch.autocast("cpu", torch.bfloat16):
        losses, rough, gradients = train_step(detector(kind, "gradient"), inputs)
    assert all(x.isfinite() for x in losses.values())
    assert all(x is not None and x.isfinite().all() for x in gradients.values())
    r = heads_of(detector(kind, "gradient"), kind)[0][2]  # proposals may differ: the first head's
    assert rough[r] == pytest.approx(exact[r], rel=0.1)


@pytest.mark.parametrize("guide, agnostic", [*zip(GUIDES, [True, False] * 2)])
def test_a_box_predictor_without_a_proposal_gives_connected_zeros(guide, agnostic):
    """All predicted boxes of a cascade's stage may be empty and dropped."""
    predictor = detector("faster", guide, agnostic=agnostic).roi_heads.box_predictor.train()
    none = Instances(PIXELS, proposal_boxes=Boxes(torch.zeros(0, 4)))
    none.gt_classes, none.gt_boxes = torch.zeros(0).long(), Boxes(torch.zeros(0, 4))
    with EventStorage():
        losses = predictor.losses(predictor(torch.zeros(0, 16)), [none])
    assert all(x.item() == 0 for x in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in predictor.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_only_frozen_adds_keys_and_only_under_guide(kind):
    stock = STOCK[kind]() if kind in STOCK else tiny_rcnn(kind, stock=True)
    for guide in GUIDES:
        model = detector(kind, guide)
        added = set(model.state_dict()) - set(stock.state_dict())
        assert not set(stock.state_dict()) - set(model.state_dict())
        if guide != "frozen":
            assert not added
            continue
        guides = [n for n, m in model.named_modules() if isinstance(m, FrozenGuide)]
        assert all(n.split(".")[-1] == "guide" for n in guides)
        assert len(guides) == len(heads_of(model, kind))
        assert added == {f"{n}.{x}" for n in guides for x in ("ratio", "num_batches", "log_sigmas")}
        missing, unexpected = stock.load_state_dict(model.state_dict(), strict=False)
        assert not missing and set(unexpected) == added
        model.load_state_dict(stock.state_dict())  # strictly: what lacks the guide's loads, too


@pytest.mark.parametrize("kind", ["retinanet", "paa", "cascade"])
def test_weights_go_between_frozen_other_guides_and_stock(kind, tmp_path):
    frozen, other = detector(kind, "frozen"), detector(kind, "iteration", seed=1)
    stock = STOCK[kind]() if kind in STOCK else tiny_rcnn(kind, stock=True)
    train_step(frozen, inputs_of(kind, 3, 2))
    for source, targets in ((frozen, (other, stock)), (other, (frozen,)), (stock, (frozen,))):
        NamingCheckpointer(source, str(tmp_path)).save("weights")
        path = str(tmp_path / "weights.pth")
        for target in targets:
            before = {k: v.clone() for k, v in target.state_dict().items() if ".guide." in f".{k}"}
            for load in (
                load_trained,
                lambda m, p: NamingCheckpointer(m).resume_or_load(p, need_all=True),
                lambda m, p: NamingCheckpointer(m).resume_or_load(p, resume=False),
            ):
                with torch.no_grad():
                    next(target.backbone.parameters()).zero_()
                load(target, path)
                for k, v in target.state_dict().items():
                    assert torch.equal(v, before[k] if k in before else source.state_dict()[k]), k
