#!/usr/bin/env python
"""The RPN's loss over every anchor beside Detectron2's, which draws 256 anchors of an image.

    python benchmarks/bench_rpn.py --output results/bench_rpn.csv

From the raw outputs of the head to their gradients: Detectron2's time is that of its sampler and of
its losses. The matching, which is the same in both, is done before. Once with the loss of the
objectness alone and once with both losses, as the detector calls them.
"""

import torch
from detectron2.config import instantiate
from detectron2.layers import cat
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from made_up import level_sizes, made_up_batch, made_up_logits
from rows import run
from sampling_free import sigmoid_bce_all
from sampling_free.cli import load_config
from timing import in_turn, summary
from traffic import memory_of, synchronizations

STRIDES = (4, 8, 16, 32, 64)
CONFIGS = {
    "256 sampled": ("configs/faster_rcnn/faster_rcnn_R_50_FPN_1x_sampled.py", []),
    "every anchor": (
        "configs/faster_rcnn/faster_rcnn_R_50_FPN_1x.py",
        ["model.proposal_generator.prior=1e-4"],
    ),
}


def cases(device, quick):
    """One image and two."""
    size = (64, 96) if quick else (800, 1344)
    return [
        {"images": images, "height": size[0], "width": size[1], "losses": losses}
        for images in ((1,) if quick else (1, 2))
        for losses in ("objectness", "both")
    ]


def measure(case, device, seconds):
    """A row for Detectron2's RPN and one for ours."""
    rpns = {
        name: instantiate(load_config(config, overrides).model.proposal_generator).to(device)
        for name, (config, overrides) in CONFIGS.items()
    }
    outputs = RawOutputs(rpns["every anchor"], case, device)
    both = {name: lambda rpn=rpn: outputs.losses(rpn) for name, rpn in rpns.items()}
    objectness = {
        "256 sampled": lambda: outputs.sampled_objectness(rpns["256 sampled"]),
        "every anchor": outputs.objectness_of_all,
    }
    losses = both if case["losses"] == "both" else objectness
    steps = {name: lambda loss=loss: outputs.gradients(loss()) for name, loss in losses.items()}
    with EventStorage():
        times = in_turn(steps, seconds)
        return [
            {
                "variant": name,
                "anchors": sum(map(len, outputs.gt_labels)),
                **summary(times[name], times["256 sampled"]),
                "peak_mb": memory_of(step, device).peak / 1e6,
                "syncs": synchronizations(step),
            }
            for name, step in steps.items()
        ]


class RawOutputs:
    """What the head of an RPN gives for a made-up batch, and how its anchors are labeled.

    Attributes:
        logits, deltas (list[Tensor]): (N, A, Hi, Wi) and (N, A*4, Hi, Wi) of each level.
        gt_labels (list[Tensor]): N times (R,): -1 ignored, 0 background, 1 foreground; all of them.
    """

    def __init__(self, rpn, case, device):
        """Args: rpn (SamplingFreeRPN): has the anchors, and labels them without a sample."""
        size = case["height"], case["width"]
        sizes = level_sizes(size, STRIDES)
        num_anchors = rpn.anchor_generator.num_anchors[0]
        self.logits = made_up_logits(sizes, case["images"], num_anchors, device)
        self.deltas = made_up_logits(sizes, case["images"], num_anchors * 4, device, seed=1)
        self.anchors = rpn.anchor_generator(self.logits)
        batch = made_up_batch(case["images"], size, 1)
        instances = [x["instances"].to(device) for x in batch]
        self.gt_labels, self.gt_boxes = rpn.label_and_sample_anchors(self.anchors, instances)

    def losses(self, rpn):
        """Both losses, added."""
        deltas = [
            x.view(len(x), -1, 4, *x.shape[2:]).permute(0, 3, 4, 1, 2).flatten(1, 3)
            for x in self.deltas
        ]
        labels = self._sampled_labels(rpn)
        losses = rpn.losses(self.anchors, self._rows(), labels, deltas, self.gt_boxes)
        return sum(losses.values())

    def sampled_objectness(self, rpn):
        """Detectron2's loss of the objectness; as in its ``RPN.losses``."""
        labels = torch.stack(self._sampled_labels(rpn))
        valid = labels >= 0
        return F.binary_cross_entropy_with_logits(
            cat(self._rows(), dim=1)[valid], labels[valid].to(torch.float32), reduction="sum"
        )

    def objectness_of_all(self):
        """Ours."""
        labels = torch.stack(self.gt_labels)
        return sigmoid_bce_all(self.logits, torch.where(labels < 0, labels, 1 - labels))

    def gradients(self, loss):
        """Of the raw outputs."""
        return torch.autograd.grad(loss, [*self.logits, *self.deltas], allow_unused=True)

    def _sampled_labels(self, rpn):
        return [rpn._subsample_labels(x.clone()) for x in self.gt_labels]

    def _rows(self):
        return [x.permute(0, 2, 3, 1).flatten(1) for x in self.logits]


if __name__ == "__main__":
    run(
        __doc__,
        cases,
        measure,
        ["device", "heap", "images", "losses", "variant", "anchors"]
        + ["ms", "ms_10", "ms_90", "ratio", "peak_mb", "syncs", "reason"],
    )
