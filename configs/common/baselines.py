"""The baselines: Detectron2's own classes, nothing of them changed, and ATSS and PAA as published.

The test thresholds stay at the lower ones of the sampling-free detectors, so that both are
evaluated alike. OHEM and GHM-C need no config of their own: train_net.py --variant ohem.
"""

from sampling_free.config.lazy_model import vary_model


def focal_baseline(model):
    """Turns the node of a sampling-free dense detector, in place, into the class with focal loss.

    model.test_score_thresh=0.05 is the usual one for RetinaNet, ATSS and PAA, 0.2 for FCOS.
    """
    vary_model(model, "focal", [])


def sampled_baseline(model):
    """Turns a sampling-free R-CNN node, in place, into Detectron2's classes with its samples.

    256 anchors an image, half of them foreground at most; 512 proposals, a quarter at most.
    test_score_thresh=0.05 of each box predictor is Detectron2's.
    """
    vary_model(model, "sampled", [])
