"""FCOS without focal loss: all points, measured prior, guided classification loss.

Parameters, assignment and inference are Detectron2's own.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes
from fvcore.nn import giou_loss
from torch import Tensor
from torch.nn import functional as F

from ..method.guides import RECOMMENDED
from ..utils.errors import BadInput
from .bias import prior_and_guide
from .points import GuidedPoints, foreground_rows, point_detector_arguments, require_finite
from .thresholds import RootPriorThreshold

BOX_WEIGHTS = ("uniform", "centerness")


@META_ARCH_REGISTRY.register()
class SamplingFreeFCOS(RootPriorThreshold, GuidedPoints, FCOS):
    """Detectron2's FCOS, trained as arXiv 1909.04868 has it.

    ``focal_loss_alpha`` and ``focal_loss_gamma`` are accepted and unused.
    """

    loss_names = ("loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr")

    @configurable
    def __init__(
        self,
        *,
        prior: float | list[float] | str = "auto",
        guide: str | float = RECOMMENDED,
        box_weight: str = "uniform",
        **kwargs,
    ):
        """Builds the detector.

        Args:
            prior, guide: as in ``SamplingFreeRetinaNet``.
            box_weight: "uniform", the mean GIoU loss over foreground points, as Detectron2
                has it; "centerness", weighted by the centerness target, as in FCOS' first paper
                (arXiv 1904.01355) and the authors' code.
            kwargs: as in Detectron2's ``FCOS``; ``test_score_thresh`` may be "prior" or
                "per_class", see ``PriorThreshold``.
        """
        super().__init__(**kwargs)
        if box_weight not in BOX_WEIGHTS:
            raise BadInput(f"model.box_weight={box_weight!r} is unknown; known: {BOX_WEIGHTS}")
        self.box_weight = box_weight
        self.init_guide_and_prior(guide, prior)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.SAMPLING_FREE
        return {
            **point_detector_arguments(cfg, node.FCOS),
            "center_sampling_radius": node.FCOS.CENTER_SAMPLING_RADIUS,
            **prior_and_guide(node),
            **cls.threshold_from_config(cfg),
        }

    def localization(
        self,
        anchors: list[Boxes],
        pred_anchor_deltas: list[Tensor],
        pred_centerness: list[Tensor],
        gt_boxes: list,
        foreground: Tensor,
    ) -> tuple:
        """Computes the box and centerness losses of the foreground.

        Args:
            anchors: the points of each level, as boxes as large as the stride.
            pred_anchor_deltas, pred_centerness, gt_boxes: as in ``losses``.
            foreground: (N, R) bool.

        Returns:
            (box loss, centerness loss), sums over the foreground; what each is divided by.
        """
        num_foreground = foreground.sum()
        with torch.autocast(foreground.device.type, enabled=False):
            target = self.compute_ctrness_targets(anchors, gt_boxes).unsqueeze(2)  # (N, R, 1)
            points, gt, deltas, centerness, target = foreground_rows(
                anchors, (pred_anchor_deltas, pred_centerness, [target]), gt_boxes, foreground
            )
            target = target.squeeze(1)  # (N_f,)
            boxes = require_finite(self.box2box_transform.apply_deltas(deltas, points))
            box_loss = giou_loss(boxes, gt, reduction="none")
            sum_ctr = F.binary_cross_entropy_with_logits(
                centerness.squeeze(1), target, reduction="sum"
            )
            if self.box_weight == "centerness":
                return ((box_loss * target).sum(), sum_ctr), (target.sum(), num_foreground)
            return (box_loss.sum(), sum_ctr), (num_foreground, num_foreground)
