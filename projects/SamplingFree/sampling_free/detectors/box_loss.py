"""The box loss of a RetinaNet or an RPN: Detectron2's, with the settings of the head."""

import torch
from detectron2.layers import cat
from detectron2.modeling.box_regression import _dense_box_regression_loss


def dense_box_loss(head, anchors, pred_anchor_deltas, gt_boxes, foreground):
    """
    Args:
        head (RetinaNet or RPN): says which loss, and how boxes are encoded.
        anchors (list[Boxes]): of each level.
        pred_anchor_deltas (list[Tensor]): for each level (N, Hi*Wi*A, 4).
        gt_boxes (list[Tensor]): N times (R, 4), of the matched objects.
        foreground (Tensor): (N, R) bool.

    Returns:
        Tensor: scalar, summed over the foreground and its coordinates.
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
