"""PAA (arXiv 2007.08103) as a Detectron2 meta-architecture: with focal loss, and without.

    N images   R anchors of all levels   K classes

ATSS' anchors and head with three changes: foreground is what the network itself takes for it
(paa_assignment.py), the quality is the box's IoU in place of centerness, and detections vote for
their boxes (score_voting.py).

**What is counted for the prior.** PAA's assignment depends on the network, so that its N_f cannot
be counted beforehand and moves while it learns. ATSS' assignment on the same anchors is counted in
its place: of the rules that need no network it alone gives about as many (docs/guides.md, measured
docs/guides.md). The candidates by IoU are several times as many.
"""

import math

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.structures.boxes import matched_pairwise_iou
from fvcore.nn import giou_loss, sigmoid_focal_loss_jit
from torch import Tensor
from torch.nn import functional as F

from ..method.classification_loss import sigmoid_bce_all
from ..method.guided_loss import guide_ratio, sum_over_processes
from ..utils.errors import BadInput, require_number
from .atss import ATSS, SamplingFreeATSS
from .paa_assignment import paa_match
from .points import require_finite
from .score_voting import vote


@META_ARCH_REGISTRY.register()
class PAA(ATSS):
    """PAA with focal loss, as published."""

    loss_names = ("loss_cls", "loss_box_reg", "loss_iou")
    yaml_node = "PAA"

    @configurable
    def __init__(
        self,
        *,
        iou_threshold: float = 0.1,
        box_loss_weight: float = 1.3,
        iou_loss_weight: float = 0.5,
        score_voting: bool = True,
        **kwargs,
    ):
        """Builds the detector.

        Args:
            iou_threshold: an anchor is a candidate of the object that it overlaps most if
                their IoU is at least that; the best anchors of an object are in any case.
            box_loss_weight: of the GIoU loss.
            iou_loss_weight: of the loss of the predicted IoU.
            score_voting: in inference.
            kwargs: as in ``ATSS``; ``topk`` is the number of candidates by the network's loss.
        """
        super().__init__(box_loss_weight=box_loss_weight, **kwargs)
        # Of 0 every anchor would be a candidate.
        require_number("model.iou_threshold", iou_threshold, 1e-6, 1)
        require_number("model.iou_loss_weight", iou_loss_weight, 0, math.inf)
        if not isinstance(score_voting, bool):
            raise BadInput(f"model.score_voting={score_voting!r}: give True or False")
        self.matcher = Matcher([iou_threshold], [0, 1], allow_low_quality_matches=True)
        self.quality_loss_weight = iou_loss_weight
        self.score_voting = score_voting

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.SAMPLING_FREE.PAA
        return {
            **super().from_config(cfg),
            "iou_threshold": node.IOU_THRESHOLD,
            "iou_loss_weight": node.IOU_LOSS_WEIGHT,
            "score_voting": node.SCORE_VOTING,
        }

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: list[list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        logits, deltas, quality = self._transpose_dense_predictions(
            predictions, [self.num_classes, 4, 1]
        )
        anchors = self.anchor_generator(features)
        labels, boxes = self.label_by_prediction(anchors, gt_instances, predictions[0], deltas)
        return self.losses(anchors, logits, labels, deltas, boxes, quality)

    @torch.no_grad()
    def label_by_prediction(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        pred_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Labels the anchors of a batch by what the network predicts.

        Args:
            anchors: one for each level.
            gt_instances: N times the ground truth.
            pred_logits: for each level (N, K, Hi, Wi), as the head gives them.
            pred_anchor_deltas: for each level (N, Hi*Wi, 4).

        Returns:
            As ``ATSS.label_anchors``.
        """
        all_anchors = Boxes.cat(anchors)
        objects = [
            self.candidate_objects(all_anchors, x.gt_boxes) for x in gt_instances
        ]  # N times (R,)
        labels, boxes = map(torch.stack, self.labels_and_boxes(objects, gt_instances))
        deltas = torch.cat(pred_anchor_deltas, dim=1).float()  # (N, R, 4)
        losses = torch.zeros_like(deltas[..., 0])  # (N, R)
        foreground = labels != self.num_classes
        with torch.autocast(deltas.device.type, enabled=False):
            rows = all_anchors.tensor.expand(len(labels), -1, -1)[foreground]
            predicted = require_finite(
                self.box2box_transform.apply_deltas(deltas[foreground], rows)
            )
            loc = giou_loss(predicted, boxes[foreground], reduction="none")
            losses[foreground] = self.anchor_losses(pred_logits, labels, foreground, loc)
        sizes = [len(x) for x in anchors]
        matched = [paa_match(x, k, sizes, self.topk) for x, k in zip(losses, objects)]
        return self.labels_and_boxes(matched, gt_instances)

    def candidate_objects(self, anchors: Boxes, gt_boxes: Boxes) -> Tensor:
        """Finds the object of which each anchor is a candidate.

        Args:
            anchors: (R, 4) of all levels.
            gt_boxes: (G, 4).

        Returns:
            (R,) index of the object that each anchor would be matched with, or -1.
        """
        # One without an area overlaps nothing, and the matcher would give it everything.
        objects = gt_boxes.nonempty().nonzero().squeeze(1)
        if len(objects) == 0:
            return anchors.tensor.new_full((len(anchors),), -1, dtype=torch.long)
        indices, labels = self.matcher(pairwise_iou(gt_boxes[objects], anchors))
        return torch.where(labels == 1, objects[indices], -1)

    def anchor_losses(
        self, pred_logits: list[Tensor], labels: Tensor, foreground: Tensor, loc: Tensor
    ) -> Tensor:
        """What the network says of each candidate: classification plus localization loss.

        Args:
            pred_logits: for each level (N, K, Hi, Wi).
            labels: (N, R) of the candidates' objects, 0..K-1; K elsewhere.
            foreground: (N, R) bool: the candidates, M in all.
            loc: (M,) GIoU loss of each.

        Returns:
            (M,)
        """
        logits = logits_at(pred_logits, foreground)  # (M, K)
        one_hot = F.one_hot(labels[foreground], self.num_classes).to(logits.dtype)
        cls = sigmoid_focal_loss_jit(
            logits, one_hot, alpha=self.focal_loss_alpha, gamma=self.focal_loss_gamma
        )
        return cls.sum(dim=1) + loc

    def quality_target(self, boxes: Tensor, anchors: Tensor, gt_boxes: Tensor) -> Tensor:
        """Computes the IoU (N_f,) of each predicted box: quality target and weight of the box."""
        return matched_pairwise_iou(Boxes(boxes), Boxes(gt_boxes))

    def refine(self, detections: Instances, candidates: Instances) -> Instances:
        """Applies score voting after NMS."""
        if self.score_voting and len(detections) > 0:
            detections.pred_boxes = vote(detections, candidates)
        return detections


@META_ARCH_REGISTRY.register()
class SamplingFreePAA(SamplingFreeATSS, PAA):
    """PAA, trained as arXiv 1909.04868 has it.

    Arguments are those of ``SamplingFreeATSS`` and ``PAA``; ``focal_loss_alpha`` and
    ``focal_loss_gamma`` are accepted and unused.
    """

    loss_names = PAA.loss_names

    def assign(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        pred_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        return self.label_by_prediction(anchors, gt_instances, pred_logits, pred_anchor_deltas)

    def anchor_losses(
        self, pred_logits: list[Tensor], labels: Tensor, foreground: Tensor, loc: Tensor
    ) -> Tensor:
        """As ``PAA.anchor_losses`` with cross entropy, guided as the losses are.

        Its sum over all anchors is scaled to that of the localization loss, as in the authors'
        final code, so that neither of the two decides alone. Both sums are over all processes, so
        that labels do not depend on how many there are.
        """
        rows = labels[foreground]
        signs = 1 - 2 * F.one_hot(rows, self.num_classes)
        cls = F.softplus(signs * logits_at(pred_logits, foreground)).sum(dim=1)  # (M,)
        totals, _ = sum_over_processes(sigmoid_bce_all(pred_logits, labels), loc.sum())
        return cls * guide_ratio(*totals) + loc


def logits_at(pred_logits: list[Tensor], mask: Tensor) -> Tensor:
    """Gathers the logits of chosen anchors.

    Args:
        pred_logits: for each level (N, K, Hi, Wi).
        mask: (N, R) bool, with M true.

    Returns:
        (M, K) float32, image by image.
    """
    masks = mask.split([x.shape[2] * x.shape[3] for x in pred_logits], dim=1)
    levels = list(zip(pred_logits, masks))
    return torch.cat(
        [x[i].flatten(1).t()[m[i]] for i in range(len(mask)) for x, m in levels]
    ).float()
