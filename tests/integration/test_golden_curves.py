"""The losses of 20 training steps of each detector, as they were when they were last looked at.

One file serves both versions of Detectron2. ``python tests/test_golden_curves.py`` writes it anew.

What is compared hangs on no coin toss of rounding: weights that differ by 1e-6 of themselves
change no number by more than 3e-5, other threads or convolutions by 1e-5. Learning rates ten
times higher, or an NMS between the RPN and the RoI heads, would not allow for that.
"""

import json
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage

import sampling_free.detectors.retinanet as retinanet_module
import sampling_free.detectors.rpn as rpn_module
from helpers.tiny import batch, tiny_retinanet
from helpers.tiny_detectors import rcnn_batch, tiny_fcos, tiny_rcnn
from sampling_free import SamplingFreeATSS, SamplingFreeFCOS, SamplingFreePAA

FILE = Path(__file__).with_name("golden_curves.json")
NUM_STEPS = 20
TOLERANCE = 1e-3
DENSE_RATE, RCNN_RATE = 0.02, 0.002  # learning rates


def _retinanet(**kwargs):
    return tiny_retinanet(prior=0.01, **kwargs), batch(3, 5), DENSE_RATE


def _fcos(cls=SamplingFreeFCOS, **kwargs):
    model = tiny_fcos(cls, prior=0.01, **kwargs)
    with torch.no_grad():
        model.head.bbox_pred.bias.fill_(1.5)  # negative distances have no gradient
    return model, batch(3, 5), DENSE_RATE


def _rcnn(kind):
    # Every anchor becomes a proposal: of two alike, rounding would choose the one that NMS keeps.
    rpn = {"prior": 0.01, "nms_thresh": 2.0, "pre_nms_topk": (9999, 1), "post_nms_topk": (9999, 1)}
    return tiny_rcnn(kind, rpn=rpn), rcnn_batch(3, 5, kind=kind), RCNN_RATE


# name -> model with seeded weights, the one batch of all steps, learning rate
CASES = {
    "RetinaNet": _retinanet,
    "RetinaNet guided by gradients": lambda: _retinanet(guide="gradient"),
    "RetinaNet with the frozen guide": lambda: _retinanet(guide="frozen"),
    "FCOS": _fcos,
    "FCOS with box weight centerness": lambda: _fcos(box_weight="centerness"),
    "ATSS": lambda: _fcos(SamplingFreeATSS),
    "PAA": lambda: _fcos(SamplingFreePAA),
    "Faster R-CNN": lambda: _rcnn("faster"),
    "Mask R-CNN": lambda: _rcnn("mask"),
    "Keypoint R-CNN": lambda: _rcnn("keypoint"),
    "Cascade R-CNN": lambda: _rcnn("cascade"),
    "Cascade Mask R-CNN": lambda: _rcnn("cascade_mask"),
    "C4": lambda: _rcnn("c4"),
}


def _curves(name):
    """{a loss, or a number of its guide: [of each step]}."""
    model, inputs, rate = CASES[name]()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    curves = {}
    with EventStorage() as storage:
        for _ in range(NUM_STEPS):
            losses = model(inputs)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            latest = {key: value for key, (value, _) in storage.latest().items()}
            guides = {k: v for k, v in latest.items() if k.endswith(("/r", "/loss_cls_raw"))}
            for key, value in {**losses, **guides}.items():
                curves.setdefault(key, []).append(float(f"{float(value):.6g}"))
            storage.step()
    return curves


def _differences(curves, golden):
    """One line for each number that is not within the tolerance."""
    lines = [f"{key}: only in one of the two" for key in curves.keys() ^ golden.keys()]
    for key in curves.keys() & golden.keys():
        assert len(curves[key]) == len(golden[key]) == NUM_STEPS
        for step, (now, then) in enumerate(zip(curves[key], golden[key])):
            if not abs(now - then) <= TOLERANCE * abs(then):
                lines.append(f"{key}, step {step}: {now}, was {then}")
    return lines


def _golden():
    return json.loads(FILE.read_text())


@pytest.mark.parametrize("name", CASES)
def test_losses_of_20_steps_are_those_of_the_file(name):
    assert _differences(_curves(name), _golden()[name]) == []


def test_the_file_has_these_detectors_with_all_their_losses():
    golden = _golden()
    assert list(golden) == list(CASES)
    stages = {f"loss_{x}_stage{i}" for x in ("cls", "box_reg") for i in range(3)}
    two = {"loss_cls", "loss_box_reg"}
    fcos = {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
    rpn = {"loss_rpn_cls", "loss_rpn_loc"}
    assert {name: {k for k in x if "/" not in k} for name, x in golden.items()} == {
        "RetinaNet": two,
        "RetinaNet guided by gradients": two,
        "RetinaNet with the frozen guide": two | {"loss_guide"},
        "FCOS": fcos,
        "FCOS with box weight centerness": fcos,
        "ATSS": two | {"loss_centerness"},
        "PAA": two | {"loss_iou"},
        "Faster R-CNN": rpn | two,
        "Mask R-CNN": rpn | two | {"loss_mask"},
        "Keypoint R-CNN": rpn | two | {"loss_keypoint"},
        "Cascade R-CNN": rpn | stages,
        "Cascade Mask R-CNN": rpn | stages | {"loss_mask"},
        "C4": rpn | two,
    }
    # A guided loss has another's value: what it was before is in the file too.
    for x in golden.values():
        guided = [k for k in x if k.startswith(("loss_cls", "loss_rpn_cls", "loss_fcos_cls"))]
        assert len([k for k in x if k.endswith("/loss_cls_raw")]) == len(guided) > 0


@pytest.mark.parametrize(
    ("name", "module", "loss"),
    [
        ("RetinaNet", retinanet_module, "sigmoid_bce_all"),
        ("RetinaNet", retinanet_module, "dense_box_loss"),
        ("C4", rpn_module, "sigmoid_bce_all"),
        ("C4", rpn_module, "dense_box_loss"),
    ],
)
def test_one_percent_of_a_loss_is_noticed(name, module, loss, monkeypatch):
    original = getattr(module, loss)
    monkeypatch.setattr(module, loss, lambda *args, **kwargs: 1.01 * original(*args, **kwargs))
    assert len(_differences(_curves(name), _golden()[name])) >= NUM_STEPS


def write():
    """Writes the file, a line for each curve."""
    blocks = []
    for name in CASES:
        lines = [f"  {json.dumps(key)}: {json.dumps(x)}" for key, x in _curves(name).items()]
        blocks.append(f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }")
    FILE.write_text("{\n" + ",\n".join(blocks) + "\n}\n")


if __name__ == "__main__":
    write()
