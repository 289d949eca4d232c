#!/usr/bin/env python
"""What ``train.monitor_period`` costs: one measurement beside the iterations it comes with.

    python benchmarks/monitor_cost.py --output results/monitor_cost.json

Each detector of CONFIGS, with the weights it starts from and a made-up batch, takes a forward and
backward pass and a measurement in turn. Recorded is the time of the second over that of the first,
pair by pair, and what it comes to with a measurement every PERIOD iterations.
"""

import argparse
import json
import os
import platform
import statistics

import torch
from detectron2 import __version__ as detectron2_version
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from guide_cost import made_up_batch, now
from tqdm import tqdm

from sampling_free.cli import load_config, one_line_errors
from sampling_free.datasets import num_classes_of
from sampling_free.gradient_probe import measure

CONFIGS = {  # and the prior, whose value does not matter here
    "configs/retinanet/retinanet_R_50_FPN_1x.py": ["model.prior=1e-5"],
    "configs/retinanet/retinanet_R_50_FPN_1x_focal.py": [],
    "configs/fcos/fcos_R_50_FPN_1x.py": ["model.prior=1e-5"],
    "configs/faster_rcnn/faster_rcnn_R_50_FPN_1x.py": ["model.proposal_generator.prior=1e-4"],
    "configs/faster_rcnn/faster_rcnn_R_50_FPN_1x_sampled.py": [],
}
PERIOD = 50


def step(model, batch):
    """Seconds of a forward and backward pass."""
    model.zero_grad(set_to_none=True)
    start = now()
    with EventStorage():
        sum(model(batch).values()).backward()
    return now() - start


def measurement(model, batch):
    """Seconds of a measurement."""
    start = now()
    measure(model, batch)
    return now() - start


def cost(config, overrides, args):
    """The record of one detector."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cfg = load_config(config, overrides)
    torch.manual_seed(0)
    model = instantiate(cfg.model).to(device).train()
    batch = made_up_batch(args.images, tuple(args.size), num_classes_of(cfg.model))
    step(model, batch)  # not measured: the first call of everything
    measurement(model, batch)
    ratios = []
    for _ in tqdm(range(args.repeats), desc=config):
        seconds = step(model, batch)
        ratios.append(measurement(model, batch) / seconds)
    return {
        "config": config,
        "size": list(args.size),
        "images": args.images,
        "repeats": args.repeats,
        "period": PERIOD,
        "iterations": ratios,
        "iterations_median": statistics.median(ratios),
        "percent": 100 * statistics.median(ratios) / PERIOD,
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)",
        "torch": torch.__version__,
        "detectron2": detectron2_version,
    }


@one_line_errors
def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", required=True, metavar="JSON")
    parser.add_argument("--size", nargs=2, type=int, default=[480, 640], help="pixels")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    records = [cost(config, overrides, args) for config, overrides in CONFIGS.items()]
    os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
    with open(args.output, "w") as f:
        json.dump(records, f, indent=1)
        f.write("\n")
    for r in records:
        print(
            f"{r['config']}: a measurement takes as long as {r['iterations_median']:.2f} "
            f"iterations; every {PERIOD} iterations {r['percent']:.1f} % more time"
        )


if __name__ == "__main__":
    main()
