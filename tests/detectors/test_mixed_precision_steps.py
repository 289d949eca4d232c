"""Steps in mixed precision of every detector and of the baselines."""

import math

import pytest
import torch
from detectron2.modeling.meta_arch.fcos import FCOS
from torch.nn import functional as F

from helpers.half_products import half_products
from helpers.mixed_precision_cases import (
    DENSE,
    DETECTORS,
    each_detector,
    each_dtype,
    inputs,
    rcnn,
    train,
)
from helpers.precision_runs import DEVICE
from helpers.tiny import stock_retinanet, tiny_retinanet
from helpers.tiny_detectors import ROI_HEADS, stock_fcos, tiny_fcos, tiny_rcnn
from helpers.tiny_run import REPO
from sampling_free import (
    ATSS,
    PAA,
    GHMRetinaNet,
    OHEMRetinaNet,
)
from sampling_free.config.load import DTYPES, load_config
from sampling_free.engine.float32_losses import losses_in_float32
from sampling_free.engine.trainer import LazyTrainer
from sampling_free.method.guides import Guide

EVERY_ANCHOR = {"nms_thresh": 2.0, "pre_nms_topk": (9999, 1), "post_nms_topk": (9999, 1)}


def guide_outputs(model):
    """What each guide of a model returns, by name, in the last step."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Guide):
            module.register_forward_hook(
                lambda module, args, result, name=name: found.__setitem__(name, result)
            )
    return found


@each_detector
@each_dtype
def test_r_is_in_float32_and_that_of_full_precision(name, dtype):
    ratios = []
    for precision in (None, dtype):
        # All scores of a fresh RPN are alike in half precision: NMS would choose by chance.
        model = (rcnn(name, **EVERY_ANCHOR) if name in ROI_HEADS else DENSE[name]()).to(DEVICE)
        found = guide_outputs(model)
        train(model, precision, [inputs(name, 3, 2)])
        assert {x.dtype for x in found.values()} == {torch.float32}
        ratios.append({k: v.item() for k, v in found.items()})
    assert len(ratios[0]) == (3 if "cascade" in name else 1) + (name in ROI_HEADS)
    # Rounding moves b by half an ulp, of 16 nats, and the box loss by no more.
    assert ratios[1] == pytest.approx(ratios[0], rel=torch.finfo(DTYPES[dtype]).eps)


@each_detector
@each_dtype
def test_steps_are_finite_and_what_they_trained_is_evaluated_in_full_precision(name, dtype):
    model = DETECTORS[name]().to(DEVICE)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    nums = [(3, 2), (0, 0), (0, 3), (5, 1), (0, 0), (2, 2), (1, 0), (4, 3)]
    trainer, latest = train(model, dtype, [inputs(name, *x) for x in nums], rate=1e-3)
    after = model.state_dict()
    assert all(x.isfinite().all() for x in after.values())
    assert any(not torch.equal(x, before[k]) for k, x in after.items())
    assert all(math.isfinite(x) for x in latest.values())
    assert trainer.num_skipped == 0
    with torch.no_grad():
        results = model.eval()(inputs(name, 3, 2))
    assert len(results) == 2
    for result in results:
        fields = result.get("instances", result.get("proposals")).get_fields()
        boxes = fields.get("pred_boxes", fields.get("proposal_boxes")).tensor
        scores = fields.get("scores", fields.get("objectness_logits"))
        for x in (boxes, scores):
            assert x.dtype == torch.float32 and x.isfinite().all()


def fcos_with_focal_loss():
    model = stock_fcos()
    losses_in_float32(model)
    return model


BASELINES = {
    "retinanet focal": stock_retinanet,
    "retinanet ohem": lambda: tiny_retinanet(OHEMRetinaNet),
    "retinanet ghm": lambda: tiny_retinanet(GHMRetinaNet),
    "fcos focal": fcos_with_focal_loss,
    "atss focal": lambda: tiny_fcos(ATSS),
    "paa focal": lambda: tiny_fcos(PAA),
    "sampled faster": lambda: tiny_rcnn(stock=True),
    "sampled cascade": lambda: tiny_rcnn("cascade", stock=True),
}


@pytest.mark.parametrize("name", BASELINES)
@each_dtype
def test_steps_of_a_baseline_are_finite(name, dtype):
    model = BASELINES[name]().to(DEVICE)
    batches = [inputs(name, *nums) for nums in [(3, 2), (0, 0), (0, 3)]]
    _, latest = train(model, dtype, batches, rate=1e-3)
    assert all(math.isfinite(x) for x in latest.values())
    assert all(x.isfinite().all() for x in model.state_dict().values())


@each_dtype
def test_the_losses_of_detectron2s_fcos_are_those_of_full_precision(dtype):
    values = []
    for precision in (None, dtype):
        _, latest = train(fcos_with_focal_loss().to(DEVICE), precision, [inputs("fcos", 3, 2)])
        values.append({k: v for k, v in latest.items() if k.startswith("loss_fcos")})
    assert len(values[0]) == 3
    assert values[1] == pytest.approx(values[0], rel=torch.finfo(DTYPES[dtype]).eps)


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU's products are not emulated")
def test_half_products_are_those_of_the_cpu():
    torch.manual_seed(0)
    x = torch.randn(2, 16, 5, 7).half().requires_grad_()
    weight = (torch.randn(8, 16, 3, 3) / 12).half().requires_grad_()
    bias = torch.randn(8).half().requires_grad_()
    matrix = (torch.randn(35, 4) / 6).half().requires_grad_()

    def products():
        y = F.conv2d(x, weight, bias, stride=1, padding=1)
        z = y.flatten(2) @ matrix
        return [y, z, *torch.autograd.grad(z.float().sum(), (x, weight, bias, matrix))]

    slow = products()
    with half_products("cpu"):
        fast = products()
    for a, b in zip(slow, fast):
        assert a.dtype == b.dtype == torch.float16
        assert (a - b).abs().max() <= 2e-3 * a.abs().max()


@pytest.mark.long
@each_dtype
def test_detectron2s_fcos_trains_from_its_config(tmp_path, dtype):
    """Its box loss alone would stop under autocast."""
    settings = [
        *("train.amp.enabled=True", f"train.amp.dtype={dtype}", "train.max_iter=2"),
        *("train.device=cpu", "train.num_pictures=0", f"train.output_dir={tmp_path}"),
        "dataloader.train.total_batch_size=2",
    ]
    for split in ("train", "test"):
        node = f"dataloader.{split}.dataset.names"
        settings += [f"{node}.train_images=4", f"{node}.val_images=2", f"{node}.image_size=[96,96]"]
        settings += [f"{node}.root={tmp_path}", f"{node}.name={tmp_path.name}_{split}"]
    cfg = load_config(str(REPO / "configs" / "demo" / "fcos.py"), settings, False, "focal")
    made = LazyTrainer(cfg)
    assert type(made.model) is FCOS
    made.train()
    latest = {k: v for k, (v, _) in made.storage.latest().items() if "loss" in k}
    assert latest and all(map(math.isfinite, latest.values()))
