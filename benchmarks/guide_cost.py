#!/usr/bin/env python
"""What guide="gradient" costs: its share of a training iteration, beside that of "iteration".

    python benchmarks/guide_cost.py --output results/guide_cost.json

Each detector of CONFIGS, with the weights it starts from and a made-up batch, takes forward and
backward passes with the two guides in turn. Recorded are the times, their ratio pair by pair, and
the time in which the gradients' norms are found, which is all that "gradient" does more: a ratio of
two iterations is as noisy as they are, the time inside is not.
"""

import argparse
import contextlib
import statistics
import sys
from unittest import mock

import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from tqdm import tqdm

from machine import default_device, device_name, versions
from made_up import made_up_batch
from sampling_free.cli import load_config, one_line_errors
from sampling_free.data.datasets import num_classes_of
from sampling_free.detectors import points, retinanet, roi_heads, rpn
from sampling_free.method import guided_loss, guides
from sampling_free.utils.files import write_json
from timing import now

CONFIGS = {  # and where the prior is; its value does not matter here
    "configs/retinanet/retinanet_R_50_FPN_1x.py": "model.prior=1e-5",
    "configs/fcos/fcos_R_50_FPN_1x.py": "model.prior=1e-5",
    "configs/atss/atss_R_50_FPN_1x.py": "model.prior=1e-5",
    "configs/paa/paa_R_50_FPN_1x.py": "model.prior=1e-5",
    "configs/faster_rcnn/faster_rcnn_R_50_FPN_1x.py": "model.proposal_generator.prior=1e-4",
    "configs/cascade_rcnn/cascade_rcnn_R_50_FPN_1x.py": "model.proposal_generator.prior=1e-4",
}
LIMIT = 2.0  # percent: exit code 1 from there on
CALLERS = (points, retinanet, roi_heads, rpn)


def set_guide(model, guide):
    """Gives every guided head that guide; weights stay."""
    for module in model.modules():
        if isinstance(getattr(module, "guide", None), guides.Guide):
            module.guide = guides.make_guide(guide, weight=module.guide.weight)


class TimedLosses:
    """``guided_losses`` that adds up the time in which the gradients' norms are found."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self, *args, gradient_norms, **kwargs):
        def timed():
            start = now()
            norms = gradient_norms()
            self.seconds += now() - start
            return norms

        return guided_loss.guided_losses(*args, gradient_norms=timed, **kwargs)


def step(model, batch, guide):
    """Seconds of a forward and backward pass, and of them for the gradients' norms."""
    set_guide(model, guide)
    model.zero_grad(set_to_none=True)
    watch = TimedLosses()
    with contextlib.ExitStack() as stack:
        stack.enter_context(EventStorage())
        for module in CALLERS:
            stack.enter_context(mock.patch.object(module, "guided_losses", watch))
        start = now()
        sum(model(batch).values()).backward()
        return now() - start, watch.seconds


def measure(config, override, args):
    """The record of one detector."""
    device = default_device()
    cfg = load_config(config, [override])
    torch.manual_seed(0)
    model = instantiate(cfg.model).to(device).train()
    batch = made_up_batch(args.images, tuple(args.size), num_classes_of(cfg.model))
    step(model, batch, "gradient")  # not measured: the first call of everything
    plain, gradient, inside = [], [], []
    for _ in tqdm(range(args.repeats), desc=config):
        plain.append(step(model, batch, "iteration")[0])
        seconds, watched = step(model, batch, "gradient")
        gradient.append(seconds)
        inside.append(watched)
    shares = [100 * a / b for a, b in zip(inside, gradient)]
    ratios = [100 * (b / a - 1) for a, b in zip(plain, gradient)]
    return {
        "config": config,
        "size": list(args.size),
        "images": args.images,
        "repeats": args.repeats,
        "percent_inside": shares,
        "percent_inside_median": statistics.median(shares),
        "percent_more": ratios,
        "percent_more_median": statistics.median(ratios),
        "seconds": statistics.median(plain) if device == "cuda" else None,
        "device": device_name(device),
        **versions(),
    }


def arguments(doc, repeats):
    """The command line of a benchmark of training iterations."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, metavar="JSON")
    parser.add_argument("--size", nargs=2, type=int, default=[480, 640], help="pixels")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=repeats)
    return parser.parse_args()


@one_line_errors
def main():
    args = arguments(__doc__, repeats=4)
    records = [measure(config, override, args) for config, override in CONFIGS.items()]
    write_json(args.output, records)
    for r in records:
        print(
            f"{r['config']}: {r['percent_inside_median']:.2f} % of an iteration for the norms; "
            f"whole iterations {r['percent_more_median']:+.1f} %"
        )

    if any(r["percent_inside_median"] >= LIMIT for r in records):
        sys.exit(f"error: {LIMIT} % or more")


if __name__ == "__main__":
    main()
