"""The RPN with OHEM or with GHM-C in the place of biased sampling.

    N images   R anchors of all levels

Parameters, assignment and proposals are Detectron2's own.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ..detectors.box_loss import dense_box_loss
from ..detectors.rpn import one_class
from ..method.guided_loss import share_of_count
from .ghm import BINS, GHMC, MOMENTUM
from .ohem import NMS_THRESH, hard_anchors, require_hard


class EveryAnchor:
    """Mixin for Detectron2's ``RPN``: every anchor that the matcher does not ignore has a label."""

    def _subsample_labels(self, label):
        return label


@PROPOSAL_GENERATOR_REGISTRY.register()
class OHEMRPN(EveryAnchor, RPN):
    """Detectron2's RPN, trained on the hardest anchors alone; see ohem.py.

    Both losses are sums divided by ``batch_size_per_image`` and the number of images, as
    Detectron2 has it. ``positive_fraction`` is accepted, as every RPN config has it, and unused.
    """

    @configurable
    def __init__(
        self,
        *,
        batch_size_per_image: int = 256,
        hard_nms_thresh: float = NMS_THRESH,
        positive_fraction=None,
        **kwargs,
    ):
        """Builds the head.

        Args:
            batch_size_per_image: at most so many anchors of an image are trained on.
            hard_nms_thresh: of the NMS by loss, on the anchors' boxes.
            kwargs: as in Detectron2's ``RPN``.
        """
        super().__init__(
            batch_size_per_image=batch_size_per_image,
            positive_fraction=positive_fraction,
            **kwargs,
        )
        where = "model.proposal_generator"
        require_hard(where, batch_size_per_image, hard_nms_thresh, "batch_size_per_image")
        self.hard_nms_thresh = hard_nms_thresh

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Computes the losses of a batch.

        Args:
            anchors: one for each level.
            pred_objectness_logits: for each level (N, Hi*Wi*A).
            gt_labels: N times (R,): -1 ignored, 0 background, 1 foreground.
            pred_anchor_deltas: for each level (N, Hi*Wi*A, 4).
            gt_boxes: N times (R, 4), of the matched objects.

        Returns:
            "loss_rpn_cls" and "loss_rpn_loc", as Detectron2's.
        """
        gt_labels = torch.stack(gt_labels)
        hard = hard_anchors(
            self,
            anchors,
            cat(pred_objectness_logits, dim=1).unsqueeze(2),
            one_class(gt_labels),
            cat(pred_anchor_deltas, dim=1),
            gt_boxes,
            self.batch_size_per_image,
            self.hard_nms_thresh,
            [self.loss_weight.get(f"loss_rpn_{x}", 1.0) for x in ("cls", "loc")],
        )
        gt_labels = list(gt_labels.masked_fill(~hard, -1))
        return super().losses(
            anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes
        )


@PROPOSAL_GENERATOR_REGISTRY.register()
class GHMRPN(EveryAnchor, RPN):
    """Detectron2's RPN with GHM-C over every anchor that is not ignored; see ghm.py.

    The box loss is a mean over the foreground anchors of all processes, summed over the four
    coordinates, as in a RetinaNet: Detectron2 divides by the number of sampled anchors, which
    there are none of. ``batch_size_per_image`` and ``positive_fraction`` are accepted, as every RPN
    config has them, and unused.
    """

    @configurable
    def __init__(
        self,
        *,
        bins=BINS,
        momentum=MOMENTUM,
        batch_size_per_image=None,
        positive_fraction=None,
        **kwargs,
    ):
        """Builds the head.

        Args:
            bins, momentum: as in ``GHMC``.
            kwargs: as in Detectron2's ``RPN``.
        """
        super().__init__(
            batch_size_per_image=batch_size_per_image,
            positive_fraction=positive_fraction,
            **kwargs,
        )
        self.ghm = GHMC(bins, momentum, "model.proposal_generator")

    def losses(
        self, anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes
    ) -> dict[str, Tensor]:
        """Computes the losses of a batch.

        Args:
            anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes: as in
                ``OHEMRPN``.

        Returns:
            "loss_rpn_cls" and "loss_rpn_loc".
        """
        gt_labels = torch.stack(gt_labels)  # (N, R)
        num_images, foreground = len(gt_labels), gt_labels == 1
        num_foreground = foreground.sum()
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", num_foreground.item() / num_images)
        storage.put_scalar("rpn/num_neg_anchors", (gt_labels == 0).sum().item() / num_images)
        sizes = [x.shape[1] for x in pred_objectness_logits]
        loss_box = dense_box_loss(self, anchors, pred_anchor_deltas, gt_boxes, foreground)
        losses = {
            "loss_rpn_cls": self.ghm(
                [x.unsqueeze(2) for x in pred_objectness_logits],
                one_class(gt_labels).split(sizes, dim=1),
            ),
            "loss_rpn_loc": loss_box / share_of_count(num_foreground).item(),
        }
        return {k: v * self.loss_weight.get(k, 1.0) for k, v in losses.items()}
