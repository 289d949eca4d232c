"""R-CNNs, and what they are compared with."""

from helpers.tiny_detectors import tiny_rcnn


def roi_heads(stock=False, **kwargs):
    if stock:
        kwargs.update(batch_size_per_image=10**6, positive_fraction=1.0)
    return tiny_rcnn(stock=stock, **kwargs).roi_heads.train()


OWN_LOSSES = {"mask": {"loss_mask"}, "keypoint": {"loss_keypoint"}, "c4": set(), "faster": set()}


BOTH = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
