"""What the baselines are built of and compared with."""

BOX_LOSSES = [("smooth_l1", 0.0), ("smooth_l1", 0.5), ("giou", 0.0)]
