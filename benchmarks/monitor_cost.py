#!/usr/bin/env python
"""What ``train.monitor_period`` costs: one measurement beside the iterations it comes with.

    python benchmarks/monitor_cost.py --output results/monitor_cost.json

Each detector of CONFIGS, with the weights it starts from and a made-up batch, takes a forward and
backward pass and a measurement in turn. Recorded is the time of the second over that of the first,
pair by pair, and what it comes to with a measurement every PERIOD iterations.
"""

import statistics

import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from tqdm import tqdm

from guide_cost import arguments
from machine import default_device, device_name, versions
from made_up import made_up_batch
from sampling_free.cli import load_config, one_line_errors
from sampling_free.data.datasets import num_classes_of
from sampling_free.diagnosis.gradients import measure
from sampling_free.utils.files import write_json
from timing import now

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
    device = default_device()
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
        "device": device_name(device),
        **versions(),
    }


@one_line_errors
def main():
    args = arguments(__doc__, repeats=5)
    records = [cost(config, overrides, args) for config, overrides in CONFIGS.items()]
    write_json(args.output, records)
    for r in records:
        print(
            f"{r['config']}: a measurement takes as long as {r['iterations_median']:.2f} "
            f"iterations; every {PERIOD} iterations {r['percent']:.1f} % more time"
        )


if __name__ == "__main__":
    main()
