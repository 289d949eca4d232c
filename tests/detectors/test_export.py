"""Inference exports as that of Detectron2's classes does, with the same detections."""

import pytest
import torch
from detectron2.structures import Boxes
from torch import Tensor

from helpers.tiny import tiny_retinanet
from helpers.tiny_detectors import rcnn, tiny_fcos, tiny_rcnn
from helpers.tiny_points import points_model
from sampling_free import (
    ATSS,
    GHMRPN,
    OHEMRPN,
    PAA,
    GHMRetinaNet,
    OHEMRetinaNet,
    OHEMStandardROIHeads,
    SamplingFreeATSS,
    SamplingFreePAA,
    SamplingFreeRetinaNet,
)

export = pytest.importorskip(
    "detectron2.export", reason="this Detectron2's export needs Caffe2", exc_type=ImportError
)
FIELDS = {
    "pred_boxes": Boxes,
    "scores": Tensor,
    "pred_classes": Tensor,
    "pred_masks": Tensor,
    "proposal_boxes": Boxes,
    "objectness_logits": Tensor,
}
RETINANETS = {
    "gradient": {"prior": 0.05, "guide": "gradient"},
    "frozen": {"prior": 0.05, "guide": "frozen"},
    "threshold of the prior": {"prior": [0.05, 0.06, 0.07], "test_score_thresh": "prior"},
}


def guided_rcnn(kind, guide="gradient"):
    return tiny_rcnn(kind, rpn={"prior": 0.05, "guide": guide}, predictor={"guide": guide})


# Those whose stock class can be scripted.
SCRIPTED = {
    **{name: lambda kw=kw: tiny_retinanet(**kw) for name, kw in RETINANETS.items()},
    "Faster R-CNN": lambda: guided_rcnn("faster"),
    "Faster R-CNN, frozen": lambda: guided_rcnn("faster", "frozen"),
    "Mask R-CNN": lambda: guided_rcnn("mask"),
    "OHEM": lambda: tiny_retinanet(OHEMRetinaNet),
    "GHM": lambda: tiny_retinanet(GHMRetinaNet),
    "OHEM in both stages": lambda: rcnn(OHEMRPN, OHEMStandardROIHeads),
    "GHM in the RPN": lambda: rcnn(GHMRPN),
}
TRACED = {
    **{name: make for name, make in SCRIPTED.items() if "frozen" not in name},
    "thresholds of the classes": lambda: tiny_retinanet(
        prior=[0.05, 0.06, 0.07], test_score_thresh="per_class"
    ),
    "FCOS": lambda: tiny_fcos(prior=0.05),
    "ATSS": lambda: points_model(ATSS),
    "PAA": lambda: points_model(PAA),
    "sampling-free ATSS": lambda: points_model(SamplingFreeATSS),
    "sampling-free PAA": lambda: points_model(SamplingFreePAA),
    "Cascade R-CNN": lambda: guided_rcnn("cascade"),
    "C4": lambda: guided_rcnn("c4"),
}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 255, (3, 64, 96), generator=generator).float()


@torch.no_grad()
def detected(model, image):
    return model([{"image": image}])[0]["instances"]


def kinds_of(model):
    """Those of this package; scripting registers some of Detectron2's under other names."""
    kinds = [type(x) for x in model.modules()]
    return [x for x in kinds if x.__module__.startswith("sampling_free")]


@pytest.mark.parametrize("name", SCRIPTED)
def test_a_scripted_detector_detects_the_same(name, image):
    model = SCRIPTED[name]().eval()
    expected = detected(model, image)
    kinds = kinds_of(model)
    scripted = export.scripting_with_instances(model, FIELDS)
    with torch.no_grad():
        if hasattr(model, "roi_heads"):
            (found,) = scripted.inference([{"image": image}], do_postprocess=False)
        else:
            (found,) = scripted([{"image": image}])
    found.pred_boxes.clip(image.shape[1:])
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    # The model itself stays what it is, to be trained on.
    assert kinds_of(model) == kinds
    assert torch.equal(detected(model, image).scores, expected.scores)


@pytest.mark.parametrize("name", TRACED)
def test_a_traced_detector_detects_the_same(name, image):
    model = TRACED[name]().eval()
    expected = detected(model, image)
    adapter = export.TracingAdapter(model, [{"image": image}])
    with torch.no_grad():
        found = torch.jit.trace(adapter, (image,), check_trace=False)(image)
    boxes = Boxes(found[0])
    boxes.clip(image.shape[1:])
    assert torch.equal(boxes.tensor, expected.pred_boxes.tensor)
    assert any(x.shape == expected.scores.shape and torch.equal(x, expected.scores) for x in found)


def test_a_class_of_ones_own_keeps_its_threshold(image):
    class Own(SamplingFreeRetinaNet):
        pass

    model = tiny_retinanet(Own, prior=0.05).eval()
    scripted = export.scripting_with_instances(model, FIELDS)
    with torch.no_grad():
        (found,) = scripted([{"image": image}])
    assert torch.equal(found.scores, detected(model, image).scores)
    assert type(model) is Own
