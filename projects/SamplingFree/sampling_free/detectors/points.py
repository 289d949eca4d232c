"""What FCOS, ATSS and PAA without sampling have in common: their losses.

    N images   R points (or anchors) of all levels   K classes   N_f foreground of the batch

Three losses: classification over every point, a box loss and the loss of a quality estimate
(centerness or IoU) over the foreground. The mean of the last two is the guide.
"""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import cat
from detectron2.modeling import build_backbone
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ..method.classification_loss import sigmoid_bce_all, sigmoid_bce_gradient_norm
from ..method.guided_loss import guided_losses
from ..method.guides import gradient_norms, make_guide
from .bias import PriorBias
from .guide_log import GuideLog, per_image


class GuidedPoints(PriorBias):
    """Mixin for a detector with a method ``localization``; see :class:`SamplingFreeFCOS`.

    Attributes:
        loss_names (tuple[str]): of classification, box and quality loss.
    """

    classifier_bias_name = "head.cls_score.bias"
    loss_names = ("loss_cls", "loss_box_reg", "loss_quality")

    def init_guide_and_prior(self, guide: str | float, prior: float | list[float] | str) -> None:
        """Sets up the guide and the prior, as ``SamplingFreeRetinaNet`` takes them."""
        self.guide = make_guide(guide, num_losses=3)
        self.guide_log = GuideLog()
        self.init_prior(prior)

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: list[list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        pred_logits, *others = predictions
        pred_anchor_deltas, pred_quality = self._transpose_dense_predictions(others, [4, 1])
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.assign(anchors, gt_instances, pred_logits, pred_anchor_deltas)
        return self.losses(
            anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes, pred_quality
        )

    def assign(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        pred_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
    ) -> tuple[list[Tensor], list]:
        """Labels the anchors; PAA takes what was predicted into account."""
        return self.label_anchors(anchors, gt_instances)

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes,
        pred_quality: list[Tensor],
    ) -> dict[str, Tensor]:
        """Computes the losses of a batch.

        Args:
            anchors: one for each level.
            pred_logits: for each level (N, K, Hi, Wi), as the head gives them.
            pred_anchor_deltas, pred_quality: for each level (N, Hi*Wi, 4 or 1).
            gt_labels: N times (R,): 0..K-1 foreground, K background.
            gt_boxes (list[Boxes or Tensor]): N times (R, 4), of the matched objects; for FCOS it
                depends on the version of Detectron2 which of the two.

        Returns:
            By ``loss_names``: the classification loss, scaled by the guide,
            which in "iteration" makes it the mean of the other two; "loss_guide" where the guide
            learns. The event storage gets "guide/r" and "guide/loss_cls_raw".
        """
        self.require_prior()
        gt_labels = torch.stack(gt_labels)  # (N, R)
        foreground = gt_labels != self.num_classes

        def sums_loc(deltas, quality):
            return self.localization(anchors, deltas, quality, gt_boxes, foreground)[0]

        sums, normalizers = self.localization(
            anchors, pred_anchor_deltas, pred_quality, gt_boxes, foreground
        )
        losses = guided_losses(
            sigmoid_bce_all(pred_logits, gt_labels),
            sums,
            foreground.sum(),
            self.guide,
            loc_normalizers=normalizers,
            gradient_norms=lambda: gradient_norms(
                sigmoid_bce_gradient_norm(pred_logits, gt_labels),
                sums_loc,
                pred_anchor_deltas,
                pred_quality,
            ),
        )
        scalars = {"num_pos_anchors": per_image(losses.num_foreground, len(gt_labels))}
        self.guide_log.write(losses, get_event_storage(), scalars)
        names_and_values = zip(self.loss_names, (losses.loss_cls, *losses.loss_loc))
        return {**dict(names_and_values), **losses.extra("loss_guide")}


def foreground_rows(
    anchors: list[Boxes], predictions: tuple[list[Tensor], ...], gt_boxes: list, foreground: Tensor
) -> tuple[Tensor, ...]:
    """Gathers the foreground of a batch, in float32: the area of a box of 256 px is beyond float16.

    Args:
        anchors: of each level.
        predictions: each for each level (N, Hi*Wi, D).
        gt_boxes: N times (R, 4), Boxes or tensors.
        foreground: (N, R) bool.

    Returns:
        Anchors (N_f, 4), objects (N_f, 4), and (N_f, D) of each prediction.
    """
    anchors = Boxes.cat(anchors).tensor.expand(len(gt_boxes), -1, -1)  # (N, R, 4)
    gt_boxes = torch.stack([getattr(x, "tensor", x) for x in gt_boxes])
    where = foreground.nonzero(as_tuple=True)  # once: a GPU has to be waited for
    rows = [anchors[where], gt_boxes[where].float()]
    return (*rows, *(cat(x, dim=1)[where].float() for x in predictions))


def require_finite(boxes: Tensor) -> Tensor:
    """Returns ``boxes``, or raises FloatingPointError if they are not finite.

    fvcore's losses would say that x1 is larger than x2.
    """
    if not torch.isfinite(boxes).all():
        raise FloatingPointError("the predicted boxes are not finite")
    return boxes


def point_detector_arguments(cfg: CfgNode, node: CfgNode) -> dict[str, Any]:
    """Constructor arguments from Detectron2's RetinaNet YAML, of which FCOS has most in common.

    P6 and P7 are made of C5 then, as that file has it, and not of P5 as in Detectron2's LazyConfig
    of FCOS.

    Args:
        cfg:
        node: ``MODEL.SAMPLING_FREE.FCOS``, or that of another detector.

    Returns:
        What FCOS, ATSS and PAA share.
    """
    retinanet = cfg.MODEL.RETINANET
    backbone = build_backbone(cfg)
    shapes = [backbone.output_shape()[f] for f in retinanet.IN_FEATURES]
    head = FCOSHead(
        input_shape=shapes,
        num_classes=retinanet.NUM_CLASSES,
        conv_dims=[shapes[0].channels] * retinanet.NUM_CONVS,
        norm=node.NORM,
        prior_prob=retinanet.PRIOR_PROB,
    )
    threshold = node.SCORE_THRESH_TEST
    return {
        "backbone": backbone,
        "head": head,
        "head_in_features": retinanet.IN_FEATURES,
        "num_classes": retinanet.NUM_CLASSES,
        "focal_loss_alpha": retinanet.FOCAL_LOSS_ALPHA,
        "focal_loss_gamma": retinanet.FOCAL_LOSS_GAMMA,
        **({} if threshold is None else {"test_score_thresh": threshold}),
        "test_topk_candidates": retinanet.TOPK_CANDIDATES_TEST,
        "test_nms_thresh": node.NMS_THRESH_TEST,
        "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }
