"""The smallest real FCOS and R-CNNs, stock and sampling-free, built from the same parts."""

import sys
from unittest import mock

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    KRCNNConvDeconvUpsampleHead,
    MaskRCNNConvUpsampleHead,
    Res5ROIHeads,
    StandardROIHeads,
)
from detectron2.structures import BitMasks, Keypoints

from helpers.tiny import WIDTH, TinyBottomUp, batch, tiny_fpn, with_papers_guide
from sampling_free import (
    SamplingFreeCascadeROIHeads,
    SamplingFreeFastRCNNOutputLayers,
    SamplingFreeFCOS,
    SamplingFreeRes5ROIHeads,
    SamplingFreeRPN,
    SamplingFreeStandardROIHeads,
)

PIXELS = dict(pixel_mean=[103.53, 116.28, 123.675], pixel_std=[57.375, 57.120, 58.395])
LEVELS = ["p3", "p4", "p5"]
# kind of R-CNN -> stock and sampling-free RoI heads
ROI_HEADS = {
    "faster": (StandardROIHeads, SamplingFreeStandardROIHeads),
    "mask": (StandardROIHeads, SamplingFreeStandardROIHeads),
    "keypoint": (StandardROIHeads, SamplingFreeStandardROIHeads),
    "cascade": (CascadeROIHeads, SamplingFreeCascadeROIHeads),
    "cascade_mask": (CascadeROIHeads, SamplingFreeCascadeROIHeads),
    "c4": (Res5ROIHeads, SamplingFreeRes5ROIHeads),
}
NUM_KEYPOINTS = 4


class TinyC4(TinyBottomUp):
    """The same up to stride 16, which is its only output."""

    def __init__(self):
        super().__init__()
        self.stages = self.stages[:2]
        self._out_features = ["c3", "c4"]

    def forward(self, x):
        return {"c4": super().forward(x)["c4"]}

    def output_shape(self):
        return {"c4": super().output_shape()["c4"]}


def tiny_fcos(cls=SamplingFreeFCOS, num_classes=3, *, norm="", seed=0, **kwargs):
    """An FCOS of 8 channels on p3 to p7 with seeded weights; ``kwargs`` go to ``cls``."""
    torch.manual_seed(seed)
    kwargs = with_papers_guide(cls, kwargs)
    head = FCOSHead(
        input_shape=[ShapeSpec(channels=WIDTH)] * 5,
        num_classes=num_classes,
        conv_dims=[WIDTH],
        norm=norm,
    )
    return cls(backbone=tiny_fpn(), head=head, num_classes=num_classes, **PIXELS, **kwargs)


def stock_fcos(**kwargs):
    return tiny_fcos(FCOS, **kwargs)


def _rpn(features, strides, in_channels, *, stock, **kwargs):
    generator = DefaultAnchorGenerator(
        sizes=[[2 * s, 4 * s] for s in strides], aspect_ratios=[[0.5, 1.0, 2.0]], strides=strides
    )
    if stock:
        kwargs = {"batch_size_per_image": 16, "positive_fraction": 0.5, **kwargs}
    else:
        kwargs = {"guide": "iteration", **kwargs}
    settings = dict(
        in_features=features,
        head=StandardRPNHead(in_channels=in_channels, num_anchors=generator.num_anchors[0]),
        anchor_generator=generator,
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        pre_nms_topk=(100, 50),
        post_nms_topk=(40, 20),
    )
    return (RPN if stock else SamplingFreeRPN)(**{**settings, **kwargs})


def _pooler(output_size, strides):
    return ROIPooler(
        output_size=output_size,
        scales=tuple(1 / s for s in strides),
        sampling_ratio=0,
        pooler_type="ROIAlignV2",
    )


def tiny_rcnn(
    kind="faster",
    num_classes=3,
    *,
    stock=False,
    agnostic=False,
    rpn=None,
    predictor=None,
    seed=0,
    **kwargs,
):
    """An R-CNN of 8 channels on p3 to p5 (C4: on c4) with seeded weights.

    Args:
        kind (str): a key of ``ROI_HEADS``.
        stock (bool): Detectron2's own classes, with small samples.
        agnostic (bool): class-agnostic boxes; the cascade always has them.
        rpn, predictor (dict): further arguments of the RPN and of each box predictor.
        kwargs: to the RoI heads.
    """
    torch.manual_seed(seed)
    features, strides = (["c4"], [16]) if kind == "c4" else (LEVELS, [8, 16, 32])
    if kind == "c4":
        backbone = TinyC4()
    else:
        names = ["c3", "c4", "c5"]
        backbone = FPN(TinyBottomUp(), names, WIDTH, top_block=LastLevelMaxPool())
    generator = _rpn(features, strides, WIDTH, stock=stock, **(rpn or {}))
    predictor_class = FastRCNNOutputLayers if stock else SamplingFreeFastRCNNOutputLayers

    def make_predictor(weights, channels):
        settings = dict(
            box2box_transform=Box2BoxTransform(weights=weights),
            num_classes=num_classes,
            cls_agnostic_bbox_reg=agnostic or kind.startswith("cascade"),
        )
        settings = with_papers_guide(predictor_class, settings)
        return predictor_class(ShapeSpec(channels=channels), **{**settings, **(predictor or {})})

    def make_box_head():
        shape = ShapeSpec(channels=WIDTH, height=4, width=4)
        return FastRCNNConvFCHead(shape, conv_dims=[], fc_dims=[16])

    def matcher(threshold):
        return Matcher([threshold], [0, 1], allow_low_quality_matches=False)

    arguments = dict(num_classes=num_classes)
    if stock:
        arguments.update(batch_size_per_image=16, positive_fraction=0.25)
    if kind == "c4":
        arguments.update(
            in_features=features,
            pooler=_pooler(4, strides),
            res5=ResNet.make_stage(
                BottleneckBlock,
                1,
                stride_per_block=[2],
                in_channels=WIDTH,
                bottleneck_channels=4,
                out_channels=16,
            ),
            box_predictor=make_predictor((10, 10, 5, 5), 16),
            proposal_matcher=matcher(0.5),
        )
    else:
        arguments.update(box_in_features=LEVELS, box_pooler=_pooler(4, strides))
    if kind.startswith("cascade"):
        weights = [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
        arguments.update(
            box_heads=[make_box_head() for _ in weights],
            box_predictors=[make_predictor(w, 16) for w in weights],
            proposal_matchers=[matcher(t) for t in (0.5, 0.6, 0.7)],
        )
    elif kind != "c4":
        arguments.update(
            box_head=make_box_head(),
            box_predictor=make_predictor((10, 10, 5, 5), 16),
            proposal_matcher=matcher(0.5),
        )
    shape = ShapeSpec(channels=WIDTH, width=4, height=4)
    if kind in ("mask", "cascade_mask"):
        arguments.update(
            mask_in_features=LEVELS,
            mask_pooler=_pooler(4, strides),
            mask_head=MaskRCNNConvUpsampleHead(shape, num_classes=num_classes, conv_dims=[8, 8]),
        )
    if kind == "keypoint":
        arguments.update(
            keypoint_in_features=LEVELS,
            keypoint_pooler=_pooler(4, strides),
            keypoint_head=KRCNNConvDeconvUpsampleHead(
                shape, num_keypoints=NUM_KEYPOINTS, conv_dims=[8], loss_normalizer="visible"
            ),
        )
    roi_heads = ROI_HEADS[kind][not stock](**{**arguments, **kwargs})
    return GeneralizedRCNN(
        backbone=backbone, proposal_generator=generator, roi_heads=roi_heads, **PIXELS
    )


def rcnn_batch(*nums, kind="faster", **kwargs):
    """Training inputs as ``tiny.batch``, with the masks or keypoints that ``kind`` needs."""
    inputs = batch(*nums, **kwargs)
    for record in inputs:
        instances = record["instances"]
        boxes = instances.gt_boxes.tensor
        height, width = instances.image_size
        if kind in ("mask", "cascade_mask"):
            rows = torch.arange(height)[None, :, None]
            columns = torch.arange(width)[None, None, :]
            x0, y0, x1, y1 = (x[:, None, None] for x in boxes.unbind(1))
            masks = (columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1)
            instances.gt_masks = BitMasks(masks)
        if kind == "keypoint":
            fractions = torch.linspace(0.2, 0.8, NUM_KEYPOINTS)[:, None]  # along the diagonal
            points = boxes[:, None, :2] + fractions * (boxes[:, None, 2:] - boxes[:, None, :2])
            visible = torch.full((len(boxes), NUM_KEYPOINTS, 1), 2.0)
            instances.gt_keypoints = Keypoints(torch.cat([points, visible], dim=2))
    return inputs


def rcnn(rpn_class=RPN, roi_class=StandardROIHeads, kind="faster", **kwargs):
    """Detectron2's tiny R-CNN with other classes."""
    here = sys.modules[__name__]
    with (
        mock.patch.object(here, "RPN", rpn_class),
        mock.patch.dict(ROI_HEADS, {kind: (roi_class, None)}),
    ):
        return tiny_rcnn(kind, stock=True, **kwargs)
