"""FCOS without focal loss: all points, measured prior, guided classification loss.

    N images   R points of all levels   K classes

The guide is the mean of the two losses that see foreground only, box and centerness. Parameters,
assignment and inference are Detectron2's own.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage
from fvcore.nn import giou_loss
from torch.nn import functional as F

from ..classification_loss import sigmoid_bce_all
from ..errors import BadInput
from ..guide_log import GuideLog, per_image
from ..guided_loss import check_guide, guided_losses
from .bias import PriorBias, prior_and_guide

BOX_WEIGHTS = ("uniform", "centerness")


@META_ARCH_REGISTRY.register()
class SamplingFreeFCOS(PriorBias, FCOS):
    """Detectron2's FCOS, trained as arXiv 1909.04868 has it.

    ``focal_loss_alpha`` and ``focal_loss_gamma`` are accepted and unused.
    """

    classifier_bias_name = "head.cls_score.bias"

    @configurable
    def __init__(self, *, prior="auto", guide="iteration", box_weight="uniform", **kwargs):
        """
        Args:
            prior, guide: as in ``SamplingFreeRetinaNet``.
            box_weight (str): "uniform", the mean GIoU loss over foreground points, as Detectron2
                has it; "centerness", weighted by the centerness target, as in FCOS' first paper
                (arXiv 1904.01355) and the authors' code.
            kwargs: as in Detectron2's ``FCOS``.
        """
        super().__init__(**kwargs)
        if box_weight not in BOX_WEIGHTS:
            raise BadInput(f"model.box_weight={box_weight!r} is unknown; known: {BOX_WEIGHTS}")
        self.guide = check_guide(guide)
        self.box_weight = box_weight
        self.guide_log = GuideLog()
        self.init_prior(prior)

    @classmethod
    def from_config(cls, cfg):
        """From Detectron2's RetinaNet YAML, of which FCOS has most in common.

        P6 and P7 are made of C5 then, as that file has it, and not of P5 as in Detectron2's
        LazyConfig of FCOS.
        """
        retinanet, fcos = cfg.MODEL.RETINANET, cfg.MODEL.SAMPLING_FREE.FCOS
        backbone = build_backbone(cfg)
        shapes = [backbone.output_shape()[f] for f in retinanet.IN_FEATURES]
        head = FCOSHead(
            input_shape=shapes,
            num_classes=retinanet.NUM_CLASSES,
            conv_dims=[shapes[0].channels] * retinanet.NUM_CONVS,
            norm=fcos.NORM,
            prior_prob=retinanet.PRIOR_PROB,
        )
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": retinanet.IN_FEATURES,
            "num_classes": retinanet.NUM_CLASSES,
            "center_sampling_radius": fcos.CENTER_SAMPLING_RADIUS,
            "test_score_thresh": fcos.SCORE_THRESH_TEST,
            "test_topk_candidates": retinanet.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": fcos.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            **prior_and_guide(cfg.MODEL.SAMPLING_FREE),
        }

    def losses(
        self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes, pred_centerness
    ):
        """
        Args:
            anchors (list[Boxes]): the points of each level, as boxes as large as the stride.
            pred_logits, pred_anchor_deltas, pred_centerness (list[Tensor]): for each level
                (N, Hi*Wi, K or 4 or 1).
            gt_labels (list[Tensor]): N times (R,): 0..K-1 foreground, K background.
            gt_boxes (list[Boxes or Tensor]): N times (R, 4), of the matched objects; which of the
                two depends on the version of Detectron2.

        Returns:
            dict[str, Tensor]: "loss_fcos_cls", scaled by the guide and by design the mean of
            "loss_fcos_loc" and "loss_fcos_ctr". The event storage gets "guide/r" and
            "guide/loss_cls_raw".
        """
        self.require_prior()
        gt_labels = torch.stack(gt_labels)  # (N, R)
        foreground = gt_labels != self.num_classes
        num_foreground = foreground.sum()
        labels_of_levels = gt_labels.split([x.shape[1] for x in pred_logits], dim=1)
        sum_cls = sum(map(sigmoid_bce_all, pred_logits, labels_of_levels))

        # In float32: the area of a box of 256 px is beyond float16.
        with torch.autocast(gt_labels.device.type, enabled=False):
            target = self.compute_ctrness_targets(anchors, gt_boxes)[foreground]  # (N_f,)
            centerness = cat(pred_centerness, dim=1).squeeze(2)[foreground].float()
            sum_ctr = F.binary_cross_entropy_with_logits(centerness, target, reduction="sum")
            box_loss = self._box_loss(anchors, pred_anchor_deltas, gt_boxes, foreground)
            if self.box_weight == "centerness":
                sum_box, box_normalizer = (box_loss * target).sum(), target.sum()
            else:
                sum_box, box_normalizer = box_loss.sum(), num_foreground

        losses = guided_losses(
            sum_cls,
            (sum_box, sum_ctr),
            num_foreground,
            self.guide,
            loc_normalizers=(box_normalizer, num_foreground),
        )
        scalars = {"num_pos_anchors": per_image(losses.num_foreground, len(gt_labels))}
        self.guide_log.write(losses, get_event_storage(), scalars)
        loss_box, loss_ctr = losses.loss_loc
        return {
            "loss_fcos_cls": losses.loss_cls,
            "loss_fcos_loc": loss_box,
            "loss_fcos_ctr": loss_ctr,
        }

    def _box_loss(self, anchors, pred_anchor_deltas, gt_boxes, foreground):
        """(N_f,) GIoU loss of each foreground point, in [0, 2]."""
        anchors = Boxes.cat(anchors).tensor.expand(len(gt_boxes), -1, -1)  # (N, R, 4)
        deltas = cat(pred_anchor_deltas, dim=1)[foreground].float()  # (N_f, 4)
        boxes = self.box2box_transform.apply_deltas(deltas, anchors[foreground])
        gt_boxes = torch.stack([getattr(x, "tensor", x) for x in gt_boxes])  # (N, R, 4)
        return giou_loss(boxes, gt_boxes[foreground], reduction="none")
