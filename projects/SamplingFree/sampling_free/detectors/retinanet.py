"""RetinaNet without focal loss: all anchors, measured prior, guided classification loss.

    N images   R anchors of all levels   K classes

Only the losses differ from Detectron2's class; parameters, assignment and inference are its own.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ..method.classification_loss import sigmoid_bce_all, sigmoid_bce_gradient_norm
from ..method.guided_loss import guided_losses
from ..method.guides import RECOMMENDED, gradient_norms, make_guide
from .bias import PriorBias, prior_and_guide
from .box_loss import dense_box_loss
from .guide_log import GuideLog, per_image
from .thresholds import PriorThreshold


@META_ARCH_REGISTRY.register()
class SamplingFreeRetinaNet(PriorThreshold, PriorBias, RetinaNet):
    """Detectron2's RetinaNet, trained as arXiv 1909.04868 has it.

    ``focal_loss_alpha`` and ``focal_loss_gamma`` are accepted, as every RetinaNet config has
    them, and unused.
    """

    classifier_bias_name = "head.cls_score.bias"

    @configurable
    def __init__(
        self,
        *,
        prior: float | list[float] | str = "auto",
        guide: str | float = RECOMMENDED,
        box_reg_loss_weight: float = 1.0,
        **kwargs,
    ):
        """Builds the detector.

        Args:
            prior: start score at every anchor, of every class or of
                each; "auto" has the hook ``PriorInit`` measure the one on the training set,
                "per_class" (ours) the other.
            guide: "iteration", r = L_loc / L_cls in every iteration; "gradient",
                "frozen" or a constant instead: see guides.py.
            box_reg_loss_weight: factor of the box loss, which is summed over the four
                coordinates and divided by the number of foreground anchors. The authors' code
                has its mean over the coordinates: 0.25. As it guides the classification loss it
                scales that too.
            kwargs: as in Detectron2's ``RetinaNet``; ``test_score_thresh`` may be "prior" or
                "per_class", see ``PriorThreshold``.
        """
        super().__init__(**kwargs)
        self.guide = make_guide(guide)
        self.box_reg_loss_weight = box_reg_loss_weight
        self.guide_log = GuideLog()
        self.init_prior(prior)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.SAMPLING_FREE
        return {
            **super().from_config(cfg),
            **prior_and_guide(node),
            **cls.threshold_from_config(cfg),
            "box_reg_loss_weight": node.BOX_REG_LOSS_WEIGHT,
        }

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: list[list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        pred_logits, pred_anchor_deltas = predictions  # (N, A*K, Hi, Wi) and (N, A*4, Hi, Wi)
        (pred_anchor_deltas,) = self._transpose_dense_predictions([pred_anchor_deltas], [4])
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes)

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
            pred_logits: for each level (N, A*K, Hi, Wi), as the head gives them.
            pred_anchor_deltas: for each level (N, Hi*Wi*A, 4).
            gt_labels: N times (R,): -1 ignored, 0..K-1 foreground, K background.
            gt_boxes: N times (R, 4), of the matched objects.

        Returns:
            "loss_cls", scaled by the guide, which in "iteration" makes it as
            large as "loss_box_reg", the other; "loss_guide" where the guide learns. The event
            storage gets "guide/r" and "guide/loss_cls_raw", the loss before scaling.
        """
        self.require_prior()
        gt_labels = torch.stack(gt_labels)  # (N, R)
        foreground = (gt_labels >= 0) & (gt_labels != self.num_classes)

        def sum_box(deltas):
            loss = dense_box_loss(self, anchors, deltas, gt_boxes, foreground)
            return self.box_reg_loss_weight * loss

        losses = guided_losses(
            sigmoid_bce_all(pred_logits, gt_labels),
            sum_box(pred_anchor_deltas),
            foreground.sum(),
            self.guide,
            gradient_norms=lambda: gradient_norms(
                sigmoid_bce_gradient_norm(pred_logits, gt_labels), sum_box, pred_anchor_deltas
            ),
        )
        scalars = {"num_pos_anchors": per_image(losses.num_foreground, len(gt_labels))}
        self.guide_log.write(losses, get_event_storage(), scalars)
        return {
            "loss_cls": losses.loss_cls,
            "loss_box_reg": losses.loss_loc,
            **losses.extra("loss_guide"),
        }
