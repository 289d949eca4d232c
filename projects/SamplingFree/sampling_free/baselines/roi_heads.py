"""RoI heads with OHEM in the place of biased sampling: the algorithm of its paper.

    R proposals of all images of the batch   K classes, K is the background

All proposals pass through pooler, head and predictor without gradient; the hardest of each image
pass a second time, and these alone are trained on. arXiv 1604.03540, section 4.
"""

from typing import Dict, List

import torch
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn import functional as F

from ..detectors.roi_heads import EveryProposal, SamplingFreeFastRCNNOutputLayers, renamed
from ..utils.errors import BadInput
from .ohem import HARD_PER_IMAGE, NMS_THRESH, box_losses, hard_examples, require_hard


@ROI_HEADS_REGISTRY.register()
class OHEMStandardROIHeads(EveryProposal, StandardROIHeads):
    """Detectron2's ``StandardROIHeads``, trained on the hardest proposals alone; see ohem.py.

    The mask and the keypoint head learn from the foreground of the same minibatch.
    ``batch_size_per_image`` and ``positive_fraction`` are accepted, as every config has them, and
    unused. "roi_head/num_fg_samples" counts all proposals, "roi_head/num_hard_fg_samples" those
    trained on.
    """

    @configurable
    def __init__(
        self,
        *,
        hard_per_image: int = HARD_PER_IMAGE,
        hard_nms_thresh: float = NMS_THRESH,
        batch_size_per_image=None,
        positive_fraction=None,
        **kwargs,
    ):
        """Builds the head.

        Args:
            hard_per_image: at most so many proposals of an image are trained on.
            hard_nms_thresh: of the NMS by loss, on the proposals' boxes.
            kwargs: as in Detectron2's class.
        """
        super().__init__(
            batch_size_per_image=batch_size_per_image,
            positive_fraction=positive_fraction,
            **kwargs,
        )
        require_hard("model.roi_heads", hard_per_image, hard_nms_thresh)
        predictor = self.box_predictor
        if isinstance(predictor, SamplingFreeFastRCNNOutputLayers):
            raise BadInput(
                f"OHEMStandardROIHeads: its box predictor is {type(predictor).__name__}; OHEM has "
                'Detectron2\'s FastRCNNOutputLayers, see as_variant(cfg, "ohem")'
            )
        if getattr(predictor, "use_sigmoid_ce", False):
            raise BadInput(
                "box_predictor.use_sigmoid_ce=True: OHEM's paper ranks proposals by softmax cross "
                "entropy; set it to False"
            )
        self.hard_per_image, self.hard_nms_thresh = hard_per_image, hard_nms_thresh

    # For TorchScript, as in SamplingFreeStandardROIHeads.
    mask_on: torch.jit.Final[bool]
    keypoint_on: torch.jit.Final[bool]
    _stock_forward_box = renamed(StandardROIHeads._forward_box, "_stock_forward_box")

    def _forward_box(self, features: Dict[str, torch.Tensor], proposals: List[Instances]):
        if self.training:
            # In place, as train_on_pred_boxes does it: the other heads get this list too.
            proposals[:] = self._hard_proposals(features, proposals)
        return self._stock_forward_box(features, proposals)

    @torch.no_grad()
    def _hard_proposals(self, features, proposals):
        """list[Instances]: at most ``hard_per_image`` of each image."""
        features = [features[f] for f in self.box_in_features]
        pooled = self.box_pooler(features, [x.proposal_boxes for x in proposals])
        losses = proposal_losses(
            self.box_predictor, self.box_predictor(self.box_head(pooled)), proposals
        )
        # Older versions of PyTorch keep the weights that autocast casts, here without gradient.
        torch.clear_autocast_cache()
        num, nms_thresh = self.hard_per_image, self.hard_nms_thresh
        hard = [
            p[hard_examples(x, p.proposal_boxes.tensor, num, nms_thresh)]
            for p, x in zip(proposals, losses.split([len(p) for p in proposals]))
        ]
        num_foreground = sum((p.gt_classes < self.num_classes).sum() for p in hard).item()
        get_event_storage().put_scalar("roi_head/num_hard_fg_samples", num_foreground / len(hard))
        return hard


def proposal_losses(
    predictor, predictions: tuple[Tensor, ...], proposals: list[Instances]
) -> Tensor:
    """The loss of each proposal, which ``FastRCNNOutputLayers.losses`` averages.

    Args:
        predictor (FastRCNNOutputLayers): says which box loss, its weight, and how boxes are
            encoded.
        predictions: logits (R, K+1) and box deltas (R, 4) or (R, 4K).
        proposals: labeled, as ``ROIHeads`` does it.

    Returns:
        (R,), float32, cross entropy plus box loss.
    """
    logits, deltas = predictions
    labels = cat([p.gt_classes for p in proposals])
    boxes = cat([p.proposal_boxes.tensor for p in proposals])
    # Images without objects have no gt_boxes, and no foreground to compare with them.
    gt_boxes = cat([getattr(p, "gt_boxes", p.proposal_boxes).tensor for p in proposals])
    weights = [predictor.loss_weight.get(x, 1.0) for x in ("loss_cls", "loss_box_reg")]
    losses = weights[0] * F.cross_entropy(logits.float(), labels, reduction="none")
    rows = (labels < predictor.num_classes).nonzero().squeeze(1)
    deltas = deltas.view(len(deltas), deltas.shape[1] // 4, 4)
    classes = labels[rows] if deltas.shape[1] > 1 else 0
    losses[rows] += weights[1] * box_losses(
        predictor.box2box_transform,
        boxes[rows],
        deltas[rows, classes],
        gt_boxes[rows],
        predictor.box_reg_loss_type,
        predictor.smooth_l1_beta,
    )
    return losses
