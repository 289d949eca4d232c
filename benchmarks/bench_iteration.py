#!/usr/bin/env python
"""A whole training iteration of every detector beside its baseline: forward and backward pass.

    python benchmarks/bench_iteration.py --output results/bench_iteration.csv

R50 with random weights on made-up images: two of 800 x 1333 pixels on a GPU, one of 320 x 480 on a
CPU. The sampling-free detector and its baseline take turns on the same batch. "proposals" is how
many of an image the RoI heads were given, "foreground" how many of them are.
"""

import torch
from detectron2.config import instantiate
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils.events import EventStorage

from made_up import fill_boxes_with_masks, made_up_batch
from rows import run
from sampling_free.cli import load_config
from sampling_free.data.datasets import num_classes_of
from timing import in_turn, summary
from traffic import memory_of, synchronizations

# Config, without its end, of the detector; what ends that of its baseline.
DETECTORS = {
    "retinanet/retinanet": "_focal",
    "fcos/fcos": "_focal",
    "atss/atss": "_focal",
    "paa/paa": "_focal",
    "faster_rcnn/faster_rcnn": "_sampled",
    "mask_rcnn/mask_rcnn": "_sampled",
    "cascade_rcnn/cascade_rcnn": "_sampled",
}
PRIORS = {"_focal": "model.prior=1e-5", "_sampled": "model.proposal_generator.prior=1e-4"}
BATCHES = {"cpu": (1, 320, 480), "cuda": (2, 800, 1333)}  # images, height and width


def cases(device, quick):
    """Every detector; on a GPU in both precisions."""
    images, height, width = (1, 64, 96) if quick else BATCHES[device]
    return [
        {"detector": name, "images": images, "height": height, "width": width, "dtype": dtype}
        for name in DETECTORS
        for dtype in (("fp32", "bf16") if device == "cuda" else ("fp32",))
    ]


def measure(case, device, seconds):
    """A row for the baseline and one for the sampling-free detector."""
    base = f"configs/{case['detector']}_R_50_FPN_1x"
    end = DETECTORS[case["detector"]]
    nodes = {
        "baseline": load_config(f"{base}{end}.py", []).model,
        "sampling-free": load_config(f"{base}.py", [PRIORS[end]]).model,
    }
    size = case["height"], case["width"]
    batch = made_up_batch(case["images"], size, num_classes_of(nodes["baseline"]))
    fill_boxes_with_masks(batch)
    storages = {name: EventStorage() for name in nodes}
    steps = {
        name: iteration(node, batch, case["dtype"], device, storages[name])
        for name, node in nodes.items()
    }
    times = in_turn(steps, seconds, least=3, warm_up=1 if device == "cpu" else 3)
    peaks = {name: memory_of(step, device).peak / 1e6 for name, step in steps.items()}
    return [
        {
            "variant": name,
            **proposals(storages[name]),
            **summary(times[name], times["baseline"]),
            "peak_mb": peaks[name],
            "more_mb": peaks[name] - peaks["baseline"],
            "syncs": synchronizations(step),
        }
        for name, step in steps.items()
    ]


def iteration(node, batch, dtype, device, storage):
    """
    Args:
        node (DictConfig): of a detector.
        batch (list[dict]): training inputs.
        dtype (str): "fp32", or "bf16" for autocast.
        device (str):
        storage (EventStorage): gets the detector's numbers.

    Returns:
        callable: takes a forward and backward pass.
    """
    torch.manual_seed(0)
    model = instantiate(node).to(device).train()
    calibrate(model, batch)

    def step():
        bf16 = torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16")
        with storage, bf16:
            loss = sum(model(batch).values())
        loss.backward()
        model.zero_grad(set_to_none=True)

    return step


@torch.no_grad()
def calibrate(model, batch):
    """Gives frozen normalization the statistics of a batch.

    It comes with those of trained weights. With random ones the features are thousands, and of the
    proposals, which are then anywhere, a handful is left.
    """

    def take_statistics(layer, inputs):
        layer.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
        layer.running_var.copy_(inputs[0].var(dim=(0, 2, 3)))

    layers = [x for x in model.modules() if isinstance(x, FrozenBatchNorm2d)]
    handles = [x.register_forward_pre_hook(take_statistics) for x in layers]
    model.backbone(model.preprocess_image(batch).tensor)
    for handle in handles:
        handle.remove()


def proposals(storage):
    """dict[str, float]: of an R-CNN, in its first stage; empty for another detector."""
    found = {}
    for name, (value, _) in storage.latest().items():
        for end, column in (("num_fg_samples", "foreground"), ("num_bg_samples", "background")):
            if name.endswith(f"roi_head/{end}"):
                found.setdefault(column, value)
    if not found:
        return {}
    return {"proposals": sum(found.values()), "foreground": found["foreground"]}


if __name__ == "__main__":
    run(
        __doc__,
        cases,
        measure,
        ["device", "heap", "detector", "dtype", "variant", "proposals", "foreground"]
        + ["ms", "ms_10", "ms_90", "ratio", "peak_mb", "syncs", "reason"],
        heaps=["kept"],
    )
