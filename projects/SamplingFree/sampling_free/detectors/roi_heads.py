"""RoI heads without sampling: every proposal takes part, guided cross entropy with w = 2.

    R proposals of all images of the batch   K classes, K is the background

After NMS about 1000 proposals an image, plus the ground truth, about one in ten of them foreground.
Detectron2's ``ROIHeads`` label the proposals, its ``FastRCNNOutputLayers`` compute the losses as
means over R; here both are means over the foreground.
"""

from types import FunctionType
from typing import Dict, List

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from ..method.classification_loss import cross_entropy_gradient_norm
from ..method.guided_loss import guided_losses, num_processes, sum_over_processes
from ..method.guides import RECOMMENDED, gradient_norms, make_guide
from ..utils.errors import BadInput
from .bias import SoftmaxPriorBias, prior_and_guide
from .guide_log import GuideLog

GUIDE_WEIGHT = 2.0  # w of the paper for the RoI head


class SamplingFreeFastRCNNOutputLayers(SoftmaxPriorBias, FastRCNNOutputLayers):
    """Detectron2's box predictor with guided cross entropy over every proposal that it is given.

    ``loss_weight`` acts before the guide: the box loss' weight scales both losses, that of the
    classification loss nothing, unless ``guide`` is a constant. The authors' code has the mean
    over the four coordinates: {"loss_box_reg": 0.25}.
    """

    classifier_bias_name = "cls_score.bias"

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        guide: str | float = RECOMMENDED,
        softmax_prior: float | None = None,
        **kwargs,
    ):
        """Builds the head.

        Args:
            input_shape: as in Detectron2's ``FastRCNNOutputLayers``.
            guide: as in ``SamplingFreeRetinaNet``.
            softmax_prior: start score of each class, in (0, 1 / K), set by the
                background's bias. The authors leave it off: about one proposal in ten is
                foreground, so that there is little to repair.
            kwargs: as in Detectron2's ``FastRCNNOutputLayers``.
        """
        super().__init__(input_shape, **kwargs)
        if getattr(self, "use_sigmoid_ce", False):
            raise BadInput(
                "box_predictor.use_sigmoid_ce=True: every score of this head would start at 0.5, "
                "and it has no prior; set it to False"
            )
        if isinstance(self.test_score_thresh, str):
            raise BadInput(
                f"box_predictor.test_score_thresh={self.test_score_thresh!r}: a RoI head has no "
                "prior to take it from; give a number"
            )
        self.guide = make_guide(guide, "model.roi_heads.box_predictor.guide", GUIDE_WEIGHT)
        self.guide_log = GuideLog("roi")
        self.init_softmax_prior(softmax_prior)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.SAMPLING_FREE
        if node.TEST_SCORE_THRESH is not None:
            raise BadInput(
                f"MODEL.SAMPLING_FREE.TEST_SCORE_THRESH = {node.TEST_SCORE_THRESH}: a RoI head has "
                "no prior to take it from; leave it at None and set "
                "MODEL.ROI_HEADS.SCORE_THRESH_TEST"
            )
        return {
            **super().from_config(cfg, input_shape),
            "guide": prior_and_guide(node)["guide"],
            "softmax_prior": node.SOFTMAX_PRIOR,
        }

    def losses(
        self, predictions: tuple[Tensor, ...], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """Computes the losses of a batch.

        Args:
            predictions: logits (R, K+1) and box deltas (R, 4) or (R, 4K).
            proposals: labeled, all of them, as ``ROIHeads`` does it.

        Returns:
            "loss_cls", scaled by the guide, which in "iteration" makes it
            twice as large as "loss_box_reg", the other; "loss_guide" where the guide learns. The
            event storage gets "guide/roi/r" and "guide/roi/loss_cls_raw".
        """
        means = super().losses(predictions, proposals)
        logits, deltas = predictions
        labels = cat([p.gt_classes for p in proposals], dim=0)  # (R,)
        losses = guided_losses(
            means["loss_cls"] * len(labels),
            means["loss_box_reg"] * len(labels),
            ((labels >= 0) & (labels < self.num_classes)).sum(),
            self.guide,
            gradient_norms=lambda: gradient_norms(
                self.loss_weight.get("loss_cls", 1.0) * cross_entropy_gradient_norm(logits, labels),
                lambda copies: self._sum_box(copies[0].flatten(1), proposals, labels),
                [deltas.view(len(deltas), deltas.shape[1] // 4, 4)],
            ),
        )
        self.guide_log.write(losses, get_event_storage(), {})
        return {
            **means,
            "loss_cls": losses.loss_cls,
            "loss_box_reg": losses.loss_loc,
            **losses.extra("loss_guide"),
        }

    def _sum_box(self, deltas, proposals, labels):
        """The box loss summed over the foreground; ``losses`` has it from Detectron2."""
        boxes = cat([p.proposal_boxes.tensor for p in proposals])
        gt_boxes = cat([getattr(p, "gt_boxes", p.proposal_boxes).tensor for p in proposals])
        mean = self.box_reg_loss(boxes, gt_boxes, deltas, labels)
        return self.loss_weight.get("loss_box_reg", 1.0) * mean * len(labels)


class EveryProposal:
    """Mixin for Detectron2's ``ROIHeads``: no proposal is dropped, except the ignored."""

    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keeps every proposal that is not ignored.

        Args:
            matched_idxs: (Ri,) the best object of each proposal of an image.
            matched_labels: (Ri,) -1 ignored, 0 background, 1 foreground.
            gt_classes: of the objects.

        Returns:
            Indices of the proposals, and their classes in 0..K.
        """
        labels = torch.full_like(matched_idxs, self.num_classes)
        if len(gt_classes) == 0:  # the matcher's labels mean nothing
            return torch.arange(len(labels), device=labels.device), labels
        labels = torch.where(matched_labels == 1, gt_classes[matched_idxs], labels)
        indices = (matched_labels >= 0).nonzero().squeeze(1)
        return indices, labels[indices]


def renamed(function, name):
    """A copy under another name: TorchScript has no super(), and one method of each name."""
    return FunctionType(function.__code__, function.__globals__, name)


@ROI_HEADS_REGISTRY.register()
class SamplingFreeStandardROIHeads(EveryProposal, StandardROIHeads):
    """Detectron2's ``StandardROIHeads`` (box, mask, keypoint), trained on every proposal.

    ``batch_size_per_image`` and ``positive_fraction`` are accepted, as every config has them, and
    unused. The numbers of foreground and background proposals are logged by Detectron2.
    """

    @configurable
    def __init__(
        self,
        *,
        max_mask_positives: int | None = None,
        batch_size_per_image=None,
        positive_fraction=None,
        **kwargs,
    ):
        """Builds the head.

        Args:
            max_mask_positives: at most so many foreground proposals of an image,
                drawn at random, are given to the mask head; None gives it all. Sampling in
                Detectron2's default recipe leaves 128.
            kwargs: as in Detectron2's class; each box predictor is a
                ``SamplingFreeFastRCNNOutputLayers``.
        """
        super().__init__(
            batch_size_per_image=batch_size_per_image,
            positive_fraction=positive_fraction,
            **kwargs,
        )
        if max_mask_positives is not None and (
            type(max_mask_positives) is not int or max_mask_positives < 1
        ):
            raise BadInput(
                f"model.roi_heads.max_mask_positives={max_mask_positives!r}: give a whole number "
                "from 1 up, or None"
            )
        self.max_mask_positives = max_mask_positives
        require_guided(self)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | dict[str, ShapeSpec]) -> dict:
        ret = super().from_config(cfg, input_shape)
        ret["max_mask_positives"] = cfg.MODEL.SAMPLING_FREE.MAX_MASK_POSITIVES
        return ret

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        shape = ret["box_head"].output_shape
        return {**ret, "box_predictor": SamplingFreeFastRCNNOutputLayers(cfg, shape)}

    # For TorchScript; Detectron2 declares it of its own class.
    mask_on: torch.jit.Final[bool]
    keypoint_on: torch.jit.Final[bool]
    _stock_forward_mask = renamed(StandardROIHeads._forward_mask, "_stock_forward_mask")

    def _forward_mask(self, features: Dict[str, torch.Tensor], instances: List[Instances]):
        if self.training:
            return self._mask_losses(features, instances)
        return self._stock_forward_mask(features, instances)

    def _mask_losses(self, features, instances):
        if not self.mask_on:
            return {}
        instances, _ = select_foreground_proposals(instances, self.num_classes)
        if self.max_mask_positives is not None:
            instances = [_at_most(x, self.max_mask_positives) for x in instances]
        losses = self._stock_forward_mask(features, instances)
        return of_all_processes(losses, sum(len(x) for x in instances))


@ROI_HEADS_REGISTRY.register()
class SamplingFreeRes5ROIHeads(EveryProposal, Res5ROIHeads):
    """Detectron2's ``Res5ROIHeads`` ("C4"), trained on every proposal.

    Each proposal passes through a stage of the ResNet here, so keeping some 2000 of them costs
    several times the memory and time of 512; ``post_nms_topk`` of the RPN says how many.
    """

    @configurable
    def __init__(self, *, batch_size_per_image=None, positive_fraction=None, **kwargs):
        super().__init__(
            batch_size_per_image=batch_size_per_image,
            positive_fraction=positive_fraction,
            **kwargs,
        )
        require_guided(self)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | dict[str, ShapeSpec]) -> dict:
        if cfg.MODEL.SAMPLING_FREE.MAX_MASK_POSITIVES is not None:
            raise BadInput(
                "MODEL.SAMPLING_FREE.MAX_MASK_POSITIVES: Res5ROIHeads know no such limit; leave "
                "it at None"
            )
        ret = super().from_config(cfg, input_shape)
        channels = ret["box_predictor"].cls_score.in_features
        shape = ShapeSpec(channels=channels, height=1, width=1)
        return {**ret, "box_predictor": SamplingFreeFastRCNNOutputLayers(cfg, shape)}


def require_guided(roi_heads):
    """Raises BadInput for RoI heads with a box predictor that does not guide its loss."""
    predictors = roi_heads.box_predictor
    for predictor in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
        if not isinstance(predictor, SamplingFreeFastRCNNOutputLayers):
            raise BadInput(
                f"{type(roi_heads).__name__}: its box predictor is {type(predictor).__name__}; "
                "without sampling it has to be SamplingFreeFastRCNNOutputLayers, see "
                "sampling_free.config.convert"
            )


def of_all_processes(losses: dict[str, Tensor], num: int) -> dict[str, Tensor]:
    """Makes losses that are means over samples of this process means over those of all.

    Args:
        losses: scalars.
        num: samples of this process.

    Returns:
        Such that the mean over the processes, which is what
        ``DistributedDataParallel`` makes of gradients, is the mean over all samples.
    """
    if num_processes() == 1 or not losses:
        return losses
    count = next(iter(losses.values())).new_tensor(num, dtype=torch.float64)
    (total,), world_size = sum_over_processes(count)
    share = count * world_size / total.clamp(min=1)
    return {name: loss * share.to(loss.dtype) for name, loss in losses.items()}


def _at_most(instances, num):
    """``num`` of the instances at random, or all if they are no more."""
    if len(instances) <= num:
        return instances
    return instances[torch.randperm(len(instances), device=instances.gt_classes.device)[:num]]
