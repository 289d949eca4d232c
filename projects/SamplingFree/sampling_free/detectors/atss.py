"""ATSS (arXiv 1912.02424) as a Detectron2 meta-architecture: with focal loss, and without.

    N images   R anchors of all levels   K classes   N_f foreground of the batch

FCOS' head with another assignment: at each place one square anchor of 8 strides, from which the
box is regressed, foreground by the statistics of its overlaps (atss_assignment.py).
"""

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from fvcore.nn import giou_loss, sigmoid_focal_loss_jit
from torch import Tensor
from torch.nn import functional as F

from ..method.guided_loss import sum_over_processes
from ..method.guides import RECOMMENDED
from ..utils.errors import BadInput, require_number
from .atss_assignment import atss_match
from .bias import prior_and_guide
from .guide_log import per_image
from .points import GuidedPoints, foreground_rows, point_detector_arguments, require_finite
from .thresholds import PriorThreshold


@META_ARCH_REGISTRY.register()
class ATSS(FCOS):
    """ATSS with focal loss, as published.

    Its head is Detectron2's ``FCOSHead``, which leaves out the learned scale of each level. The
    test threshold acts on the class score, as in the authors' code; detections are ranked by
    sqrt(class score * centerness).
    """

    loss_names = ("loss_cls", "loss_box_reg", "loss_centerness")
    quality_loss_weight = 1.0
    yaml_node = "ATSS"  # in MODEL.SAMPLING_FREE

    @configurable
    def __init__(
        self,
        *,
        anchor_size: float = 8.0,
        topk: int = 9,
        box_loss_weight: float = 2.0,
        test_score_thresh: float = 0.05,
        **kwargs,
    ):
        """Builds the detector.

        Args:
            anchor_size: side of the square anchors, in strides.
            topk: candidates of an object in each level.
            box_loss_weight: of the GIoU loss.
            test_score_thresh: of the class score.
            kwargs: as in Detectron2's ``FCOS``, without ``center_sampling_radius``.
        """
        if type(topk) is not int or topk < 1:
            raise BadInput(f"model.topk={topk!r}: give a whole number of candidates from 1 up")
        require_number("model.anchor_size", anchor_size, 1e-3, math.inf)
        require_number("model.box_loss_weight", box_loss_weight, 0, math.inf)
        if "center_sampling_radius" in kwargs:
            raise BadInput(f"model.center_sampling_radius: {type(self).__name__} has no such key")
        kwargs.setdefault("box2box_transform", Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)))
        super().__init__(test_score_thresh=test_score_thresh, **kwargs)
        strides = list(self.anchor_generator.strides)
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[anchor_size * s] for s in strides],
            aspect_ratios=[1.0],
            strides=strides,
            offset=0.5,
        )
        self.topk = topk
        self.box_loss_weight = box_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.SAMPLING_FREE[cls.yaml_node]
        return {
            **point_detector_arguments(cfg, node),
            "anchor_size": node.ANCHOR_SIZE,
            "topk": node.TOPK,
            "box_loss_weight": node.BOX_LOSS_WEIGHT,
        }

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Labels the anchors of a batch.

        Args:
            anchors: one for each level.
            gt_instances: N times the ground truth.

        Returns:
            N times labels (R,), 0..K-1 foreground, K background; and N times the boxes (R, 4) of
            the matched objects.
        """
        matched = [atss_match(anchors, x.gt_boxes, self.topk) for x in gt_instances]
        return self.labels_and_boxes(matched, gt_instances)

    def labels_and_boxes(
        self, matched: list[Tensor], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Does as :meth:`label_anchors`, from the index (R,) of each anchor's object, or -1."""
        labels, boxes = [], []
        for indices, instances in zip(matched, gt_instances):
            if len(instances) == 0:
                labels.append(torch.full_like(indices, self.num_classes))
                boxes.append(instances.gt_boxes.tensor.new_zeros(len(indices), 4))
                continue
            classes = instances.gt_classes[indices.clamp(min=0)]
            labels.append(torch.where(indices >= 0, classes, self.num_classes))
            boxes.append(instances.gt_boxes.tensor[indices.clamp(min=0)])
        return labels, boxes

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
        pred_quality: list[Tensor],
    ) -> dict[str, Tensor]:
        """Computes the losses of a batch.

        Args:
            anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes, pred_quality: as in
                ``SamplingFreeATSS``.

        Returns:
            By ``loss_names``; focal loss and quality loss are divided by the
            number of foreground anchors of all processes, the box loss by the sum of its weights.
        """
        gt_labels = torch.stack(gt_labels)  # (N, R)
        foreground = gt_labels != self.num_classes
        one_hot = F.one_hot(gt_labels, self.num_classes + 1)[..., :-1]  # (N, R, K)
        logits = torch.cat(pred_logits, dim=1).float()
        sum_cls = sigmoid_focal_loss_jit(
            logits,
            one_hot.to(logits.dtype),
            alpha=self.focal_loss_alpha,
            gamma=self.focal_loss_gamma,
            reduction="sum",
        )
        sums, normalizers = self.localization(
            anchors, pred_anchor_deltas, pred_quality, gt_boxes, foreground
        )
        totals, num_processes = sum_over_processes(foreground.sum(), *normalizers)
        num_pos_anchors = per_image(totals[0], len(gt_labels)).item()
        get_event_storage().put_scalar("num_pos_anchors", num_pos_anchors)
        totals[0].clamp_(min=1)
        totals.masked_fill_(totals <= 0, 1)
        losses = zip(self.loss_names, (sum_cls, *sums), totals)
        return {name: x * (num_processes / n).to(x.dtype) for name, x, n in losses}

    def localization(
        self,
        anchors: list[Boxes],
        pred_anchor_deltas: list[Tensor],
        pred_quality: list[Tensor],
        gt_boxes: list[Tensor],
        foreground: Tensor,
    ) -> tuple:
        """Computes the box and quality losses of the foreground.

        Args:
            anchors: of each level.
            pred_anchor_deltas, pred_quality, gt_boxes: as in ``losses``.
            foreground: (N, R) bool.

        Returns:
            (box loss, quality loss), sums over the foreground; what each is divided by.
        """
        with torch.autocast(foreground.device.type, enabled=False):
            rows, gt, deltas, quality = foreground_rows(
                anchors, (pred_anchor_deltas, pred_quality), gt_boxes, foreground
            )
            boxes = require_finite(self.box2box_transform.apply_deltas(deltas, rows))
            target = self.quality_target(boxes.detach(), rows, gt)  # (N_f,)
            box_loss = giou_loss(boxes, gt, reduction="none")
            sum_quality = F.binary_cross_entropy_with_logits(
                quality.squeeze(1), target, reduction="sum"
            )
        return (
            (
                self.box_loss_weight * (box_loss * target).sum(),
                self.quality_loss_weight * sum_quality,
            ),
            (target.sum(), foreground.sum()),
        )

    def quality_target(self, boxes: Tensor, anchors: Tensor, gt_boxes: Tensor) -> Tensor:
        """Computes the centerness of the anchor's center in its object.

        Args:
            boxes: (N_f, 4) as they are predicted; unused here.
            anchors, gt_boxes: (N_f, 4).

        Returns:
            (N_f,) in [0, 1], target of the quality estimate and weight of the box loss.
        """
        centers = (anchors[:, :2] + anchors[:, 2:]) / 2
        before, behind = centers - gt_boxes[:, :2], gt_boxes[:, 2:] - centers
        ratios = torch.minimum(before, behind) / torch.maximum(before, behind)
        return ratios.clamp(min=0).prod(dim=1).sqrt()

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        """Detects the objects of a batch.

        Args:
            images, features, predictions: as in Detectron2's ``FCOS``.

        Returns:
            N times the detections.
        """
        logits, deltas, quality = self._transpose_dense_predictions(
            predictions, [self.num_classes, 4, 1]
        )
        anchors = self.anchor_generator(features)
        threshold = self.test_score_thresh
        scores = []  # (N, Hi*Wi, K) of each level
        for x, q in zip(logits, quality):
            x, q = x.float().sigmoid(), q.float().sigmoid()
            scores.append(torch.sqrt(x * q).masked_fill(x <= threshold, 0))
        return [
            self.inference_single_image(
                anchors, [x[i] for x in scores], [x[i] for x in deltas], size
            )
            for i, size in enumerate(images.image_sizes)
        ]

    def inference_single_image(
        self,
        anchors: list[Boxes],
        box_cls: list[Tensor],
        box_delta: list[Tensor],
        image_size: tuple[int, int],
    ) -> Instances:
        """Detects the objects of one image.

        Args:
            anchors: of each level.
            box_cls, box_delta: (Hi*Wi, K) final scores, 0 under the threshold, and
                (Hi*Wi, 4).
            image_size: (height, width) in pixels.

        Returns:
            The detections.
        """
        candidates = Instances.cat(
            [
                self._decode_per_level_predictions(
                    *level, 0.0, self.test_topk_candidates, image_size
                )
                for level in zip(anchors, box_cls, box_delta)
            ]
        )
        keep = batched_nms(
            candidates.pred_boxes.tensor,
            candidates.scores,
            candidates.pred_classes,
            self.test_nms_thresh,
        )
        return self.refine(candidates[keep[: self.max_detections_per_image]], candidates)

    def refine(self, detections: Instances, candidates: Instances) -> Instances:
        """Returns the detections after NMS; ``candidates`` are those before."""
        return detections


@META_ARCH_REGISTRY.register()
class SamplingFreeATSS(PriorThreshold, GuidedPoints, ATSS):
    """ATSS, trained as arXiv 1909.04868 has it.

    ``focal_loss_alpha`` and ``focal_loss_gamma`` are accepted and unused.
    """

    loss_names = ATSS.loss_names

    @configurable
    def __init__(
        self,
        *,
        prior: float | list[float] | str = "auto",
        guide: str | float = RECOMMENDED,
        test_score_thresh: float | str = 0.001,
        **kwargs,
    ):
        """Builds the detector.

        Args:
            prior, guide: as in ``SamplingFreeRetinaNet``.
            test_score_thresh: of the class score; "prior" or "per_class": see
                ``PriorThreshold``.
            kwargs: as in ``ATSS``.
        """
        super().__init__(test_score_thresh=test_score_thresh, **kwargs)
        self.init_guide_and_prior(guide, prior)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            **super().from_config(cfg),
            **prior_and_guide(cfg.MODEL.SAMPLING_FREE),
            **cls.threshold_from_config(cfg),
        }
