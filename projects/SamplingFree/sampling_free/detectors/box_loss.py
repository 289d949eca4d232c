"""The box loss of a RetinaNet or an RPN: Detectron2's, with the settings of the head."""

import torch
from detectron2.layers import cat
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.structures import Boxes
from torch import Tensor, nn


def dense_box_loss(
    head: nn.Module,
    anchors: list[Boxes],
    pred_anchor_deltas: list[Tensor],
    gt_boxes: list[Tensor],
    foreground: Tensor,
) -> Tensor:
    """Sums the box loss of the foreground anchors, as Detectron2 computes it.

    Args:
        head: a RetinaNet or an RPN; says which loss, and how boxes are encoded.
        anchors: of each level.
        pred_anchor_deltas: for each level (N, Hi*Wi*A, 4).
        gt_boxes: N times (R, 4), of the matched objects.
        foreground: (N, R) bool.

    Returns:
        Scalar, summed over the foreground and its coordinates.
    """
    # Detectron2's function encodes every anchor before it drops the background.
    images, rows = foreground.nonzero(as_tuple=True)
    return _dense_box_regression_loss(
        [type(anchors[0]).cat(anchors)[rows]],
        head.box2box_transform,
        [cat(pred_anchor_deltas, dim=1)[images, rows].unsqueeze(0)],
        [torch.stack(gt_boxes)[images, rows]],
        torch.ones_like(rows, dtype=torch.bool).unsqueeze(0),
        box_reg_loss_type=head.box_reg_loss_type,
        smooth_l1_beta=head.smooth_l1_beta,
    )
