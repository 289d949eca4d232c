"""Detectors whose gradients the tests of the diagnosis measure."""

from helpers.guided_detectors import GUIDES, KINDS, STOCK, detector
from helpers.tiny import tiny_retinanet
from helpers.tiny_detectors import ROI_HEADS, tiny_rcnn
from sampling_free.baselines.retinanet import GHMRetinaNet, OHEMRetinaNet
from sampling_free.baselines.roi_heads import OHEMStandardROIHeads
from sampling_free.baselines.rpn import GHMRPN, OHEMRPN


def with_rpn(cls):
    """A stock Faster R-CNN with another RPN."""
    model = tiny_rcnn(stock=True)
    old = model.proposal_generator
    model.proposal_generator = cls(
        in_features=old.in_features,
        head=old.rpn_head,
        anchor_generator=old.anchor_generator,
        anchor_matcher=old.anchor_matcher,
        box2box_transform=old.box2box_transform,
        batch_size_per_image=16,
        pre_nms_topk=(100, 50),
        post_nms_topk=(40, 20),
    )
    return model


def with_hard_proposals():
    """A stock Faster R-CNN that is trained on the hardest proposals."""
    model = tiny_rcnn(stock=True)
    model.roi_heads.__class__ = OHEMStandardROIHeads
    model.roi_heads.hard_per_image, model.roi_heads.hard_nms_thresh = 8, 0.7
    return model


BASELINES = {
    "GHM": ("retinanet", lambda: tiny_retinanet(GHMRetinaNet)),
    "OHEM": ("retinanet", lambda: tiny_retinanet(OHEMRetinaNet)),
    "GHM RPN": ("faster", lambda: with_rpn(GHMRPN)),
    "OHEM RPN": ("faster", lambda: with_rpn(OHEMRPN)),
    "OHEM RoI": ("faster", with_hard_proposals),
}


def built():
    """{name: (kind, maker)} of everything that is measured."""
    made = {f"stock {kind}": (kind, make) for kind, make in STOCK.items()}
    for kind in ROI_HEADS:
        made[f"stock {kind}"] = kind, lambda kind=kind: tiny_rcnn(kind, stock=True)
    for kind in KINDS:
        for guide in GUIDES:
            made[f"{kind} {guide}"] = kind, lambda kind=kind, guide=guide: detector(kind, guide)
    made["agnostic"] = "faster", lambda: detector("faster", "iteration", agnostic=True)
    return {**made, **BASELINES}


BUILT = built()
