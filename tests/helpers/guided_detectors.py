"""Every detector with every guide, and inputs for it."""

import torch
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

from helpers.tiny import batch, stock_retinanet, tiny_retinanet
from helpers.tiny_detectors import ROI_HEADS, rcnn_batch, stock_fcos, tiny_fcos, tiny_rcnn
from sampling_free import ATSS, PAA, SamplingFreeATSS, SamplingFreePAA

POINTS = {"fcos": (), "atss": (SamplingFreeATSS,), "paa": (SamplingFreePAA,)}

STOCK = {
    "retinanet": stock_retinanet,
    "fcos": stock_fcos,
    "atss": lambda: tiny_fcos(ATSS),
    "paa": lambda: tiny_fcos(PAA),
}

KINDS = [*STOCK, *ROI_HEADS]

GUIDES = ["iteration", "gradient", "frozen", 0.5]

QUALITY = {"fcos": "loss_fcos_{}", "atss": "loss_{}", "paa": "loss_{}"}


def detector(kind, guide, rpn=None, predictor=None, **kwargs):
    """With drawn weights in the heads, so that no two predictions are alike."""
    if kind == "retinanet":
        model = tiny_retinanet(prior=0.01, guide=guide, **kwargs)
    elif kind in POINTS:
        model = tiny_fcos(*POINTS[kind], prior=0.01, guide=guide, **kwargs)
    else:
        rpn = {"prior": 0.01, "guide": guide, **(rpn or {})}
        model = tiny_rcnn(kind, rpn=rpn, predictor={"guide": guide, **(predictor or {})}, **kwargs)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith("backbone") and "guide" not in name:
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


def inputs_of(kind, *nums):
    return rcnn_batch(*nums, kind=kind) if kind in ROI_HEADS else batch(*nums)


def heads_of(model, kind):
    """For each head the module that predicts, its losses' names, the name of its r, and w."""
    if kind not in ROI_HEADS:
        if kind == "retinanet":
            return [(model.head, ["loss_cls", "loss_box_reg"], "guide/r", 1)]
        third = {"fcos": ["cls", "loc", "ctr"], "atss": ["cls", "box_reg", "centerness"],
                 "paa": ["cls", "box_reg", "iou"]}[kind]  # fmt: skip
        return [(model.head, [QUALITY[kind].format(x) for x in third], "guide/r", 1)]
    rpn = model.proposal_generator.rpn_head
    heads = [(rpn, ["loss_rpn_cls", "loss_rpn_loc"], "guide/rpn/r", 1)]
    predictors = [m for m in model.modules() if isinstance(m, FastRCNNOutputLayers)]
    cascade = kind.startswith("cascade")
    assert len(predictors) == (3 if cascade else 1)
    for i, predictor in enumerate(predictors):
        end, start = (f"_stage{i}", f"stage{i}/") if cascade else ("", "")
        names = [f"loss_cls{end}", f"loss_box_reg{end}"]
        heads.append((predictor, names, f"{start}guide/roi/r", 2))
    return heads
