"""A made-up measurement of one head."""

import torch

from sampling_free.diagnosis.gradients import HeadMeasurement, score_histograms


def made_up_head(**changes):
    """A RetinaNet's head that nothing is wrong with."""
    terms = ("loss_cls", "loss_cls/foreground", "loss_cls/background", "loss_box_reg")
    numbers = dict(
        cls_name="loss_cls",
        loc_names=["loss_box_reg"],
        num_classes=3,
        num_foreground=5,
        num_valid=1000,
        is_softmax=False,
        takes_all_anchors=True,
        is_focal=False,
        prior_key="model.prior",
        takes_measured_prior=True,
        outputs=dict(zip(terms, (2.0, 1.0, 1.0, 4.0))),
        features=dict(zip(terms, (0.2, 0.1, 0.15, 0.4))),
        scores={"foreground": 0.002, "background": 0.0017},
        saturated=0.0,
        histograms=score_histograms(torch.ones(5), torch.ones(995, 3)),
        ratio=0.3,
        loss_parts={"foreground": 5.0, "background": 1.0},
        cross_entropy=7.4,
    )
    return HeadMeasurement(**{**numbers, **changes})
