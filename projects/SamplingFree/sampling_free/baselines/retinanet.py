"""RetinaNet with OHEM or with GHM-C in the place of focal loss.

    N images   R anchors of all levels   K classes

Only ``losses`` differs from Detectron2's class; parameters, assignment and inference are its own.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ..detectors.box_loss import dense_box_loss
from ..method.classification_loss import sigmoid_bce_all
from ..method.guided_loss import share_of_count, sum_over_processes
from .ghm import BINS, GHMC, MOMENTUM
from .ohem import hard_anchors, require_hard

# The best OHEM of a RetinaNet in Lin et al., arXiv 1708.02002, section 5.1 and table 1d: batch size
# 128, which they do not say of what (here: of an image), no ratio, NMS at 0.5.
HARD_PER_IMAGE = 128
NMS_THRESH = 0.5


@META_ARCH_REGISTRY.register()
class OHEMRetinaNet(RetinaNet):
    """Detectron2's RetinaNet, trained with BCE on the hardest anchors alone; see ohem.py.

    ``focal_loss_alpha`` and ``focal_loss_gamma`` are accepted, as every RetinaNet config has
    them, and unused.
    """

    @configurable
    def __init__(
        self, *, hard_per_image: int = HARD_PER_IMAGE, hard_nms_thresh: float = NMS_THRESH, **kwargs
    ):
        """Builds the detector.

        Args:
            hard_per_image: at most so many anchors of an image are trained on.
            hard_nms_thresh: of the NMS by loss, on the anchors' boxes.
            kwargs: as in Detectron2's ``RetinaNet``.
        """
        super().__init__(**kwargs)
        require_hard("model", hard_per_image, hard_nms_thresh)
        self.hard_per_image, self.hard_nms_thresh = hard_per_image, hard_nms_thresh

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Computes the losses of a batch.

        Args:
            anchors: one for each level.
            pred_logits, pred_anchor_deltas: for each level (N, Hi*Wi*A, K or 4).
            gt_labels: N times (R,): -1 ignored, 0..K-1 foreground, K background.
            gt_boxes: N times (R, 4), of the matched objects.

        Returns:
            "loss_cls" and "loss_box_reg", sums divided by the number of hard
            anchors of the batch, which is that of all processes. The event storage gets the number
            of foreground ones among them.
        """
        labels, logits = torch.stack(gt_labels), cat(pred_logits, dim=1)
        hard = hard_anchors(
            self,
            anchors,
            logits,
            labels,
            cat(pred_anchor_deltas, dim=1),
            gt_boxes,
            self.hard_per_image,
            self.hard_nms_thresh,
        )
        foreground = hard & (labels != self.num_classes)
        num_pos_anchors = foreground.sum().item() / len(labels)
        get_event_storage().put_scalar("num_pos_anchors", num_pos_anchors)
        normalizer = share_of_count(hard.sum()).float()
        loss_box = dense_box_loss(self, anchors, pred_anchor_deltas, gt_boxes, foreground)
        return {
            "loss_cls": sigmoid_bce_all(logits[hard], labels[hard]) / normalizer,
            "loss_box_reg": loss_box / normalizer,
        }


@META_ARCH_REGISTRY.register()
class GHMRetinaNet(RetinaNet):
    """Detectron2's RetinaNet with GHM-C over every anchor that is not ignored; see ghm.py.

    The box loss is Detectron2's, but its running normalizer is of all processes together.
    ``focal_loss_alpha`` and ``focal_loss_gamma`` are accepted, as every RetinaNet config has them,
    and unused.
    """

    @configurable
    def __init__(self, *, bins=BINS, momentum=MOMENTUM, **kwargs):
        """Builds the detector.

        Args:
            bins, momentum: as in ``GHMC``.
            kwargs: as in Detectron2's ``RetinaNet``.
        """
        super().__init__(**kwargs)
        self.ghm = GHMC(bins, momentum)

    def losses(
        self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes
    ) -> dict[str, Tensor]:
        """Computes the losses of a batch.

        Args:
            anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes: as in
                ``OHEMRetinaNet``.

        Returns:
            "loss_cls" and "loss_box_reg".
        """
        labels = torch.stack(gt_labels)
        foreground = (labels >= 0) & (labels != self.num_classes)
        num_foreground = foreground.sum()
        (total,), num_processes = sum_over_processes(num_foreground)
        num_pos_anchors = num_foreground.item() / len(labels)
        get_event_storage().put_scalar("num_pos_anchors", num_pos_anchors)
        running = self._ema_update("loss_normalizer", max(total.item(), 1), 100)
        labels_of_levels = labels.split([x.shape[1] for x in pred_logits], dim=1)
        loss_box = dense_box_loss(self, anchors, pred_anchor_deltas, gt_boxes, foreground)
        return {
            "loss_cls": self.ghm(pred_logits, labels_of_levels),
            # DistributedDataParallel averages the gradients over processes, hence their number.
            "loss_box_reg": loss_box / (running / num_processes),
        }
