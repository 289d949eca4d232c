"""The RPN without sampling: every anchor that the matcher does not ignore takes part.

    N images   R anchors of all levels

Objectness has one class (C = 1) and a prior of its own. Both losses are means over the foreground
anchors; Detectron2 divides by the number of sampled ones, which there are none of. Parameters,
assignment and proposals are Detectron2's own.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ..method.classification_loss import sigmoid_bce_all, sigmoid_bce_gradient_norm
from ..method.guided_loss import guided_losses
from ..method.guides import RECOMMENDED, gradient_norms, make_guide
from .bias import PriorBias, prior_and_guide
from .box_loss import dense_box_loss
from .guide_log import GuideLog, per_image


@PROPOSAL_GENERATOR_REGISTRY.register()
class SamplingFreeRPN(PriorBias, RPN):
    """Detectron2's RPN, trained as arXiv 1909.04868 has it.

    ``batch_size_per_image`` and ``positive_fraction`` are accepted, as every RPN config has them,
    and unused. ``loss_weight`` acts before the guide: the box loss' weight scales both losses,
    that of the classification loss nothing, unless ``guide`` is a constant. The authors' code
    has half the mean over the four coordinates: {"loss_rpn_loc": 0.125}.
    """

    classifier_bias_name = "rpn_head.objectness_logits.bias"
    prior_key = "model.proposal_generator.prior"

    @configurable
    def __init__(
        self,
        *,
        prior: float | list[float] | str = "auto",
        guide: str | float = RECOMMENDED,
        batch_size_per_image: int | None = None,
        positive_fraction: float | None = None,
        **kwargs,
    ):
        """Builds the head.

        Args:
            prior, guide: as in ``SamplingFreeRetinaNet``.
            kwargs: as in Detectron2's ``RPN``.
        """
        super().__init__(
            batch_size_per_image=batch_size_per_image,
            positive_fraction=positive_fraction,
            **kwargs,
        )
        self.guide = make_guide(guide, "model.proposal_generator.guide")
        self.guide_log = GuideLog("rpn")
        self.init_prior(prior)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        return {
            **super().from_config(cfg, input_shape),
            **prior_and_guide(cfg.MODEL.SAMPLING_FREE),
        }

    def class_logits(self, features: dict[str, Tensor]) -> list[Tensor]:
        return self.rpn_head([features[f] for f in self.in_features])[0]

    def _subsample_labels(self, label):
        return label

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
            "loss_rpn_cls", scaled by the guide, which in "iteration" makes it
            as large as "loss_rpn_loc", the other; "loss_rpn_guide" where the guide learns. The
            event storage gets "guide/rpn/r" and "guide/rpn/loss_cls_raw".
        """
        self.require_prior()
        gt_labels = torch.stack(gt_labels)  # (N, R)
        foreground = gt_labels == 1
        labels = one_class(gt_labels)
        # One class, and a column of Hi*Wi*A places.
        logits = [x[:, None, :, None] for x in pred_objectness_logits]
        cls_weight = self.loss_weight.get("loss_rpn_cls", 1.0)

        def sum_box(deltas):
            weight = self.loss_weight.get("loss_rpn_loc", 1.0)
            return weight * dense_box_loss(self, anchors, deltas, gt_boxes, foreground)

        losses = guided_losses(
            cls_weight * sigmoid_bce_all(logits, labels),
            sum_box(pred_anchor_deltas),
            foreground.sum(),
            self.guide,
            gradient_norms=lambda: gradient_norms(
                cls_weight * sigmoid_bce_gradient_norm(logits, labels),
                sum_box,
                pred_anchor_deltas,
            ),
        )
        num_images = len(gt_labels)
        scalars = {
            "rpn/num_pos_anchors": per_image(losses.num_foreground, num_images),
            # Of this process, as Detectron2 has it; no reduction for a line of the log.
            "rpn/num_neg_anchors": (gt_labels == 0).sum() / num_images,
        }
        self.guide_log.write(losses, get_event_storage(), scalars)
        return {
            "loss_rpn_cls": losses.loss_cls,
            "loss_rpn_loc": losses.loss_loc,
            **losses.extra("loss_rpn_guide"),
        }


def one_class(gt_labels: Tensor) -> Tensor:
    """Converts the RPN's labels (0 background, 1 foreground) to those of one class, 0, and 1."""
    return torch.where(gt_labels < 0, gt_labels, 1 - gt_labels)
