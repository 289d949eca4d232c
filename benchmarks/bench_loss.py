#!/usr/bin/env python
"""Losses over all anchors and classes: time, memory and bytes moved, ours and its rivals.

    python benchmarks/bench_loss.py --output results/bench_loss.csv

From the raw outputs of a head to their gradients: forward and backward pass of the loss alone. All
of rivals.py take turns on the same tensors. "copy" is the time to copy the logits; three halves of
it is the floor, as a loss has to read the logits once, and once more to write their gradient.
"""

import statistics
from typing import NamedTuple

import torch

from made_up import level_sizes, made_up_labels, made_up_logits
from rivals import LOSSES, compiled
from rows import run
from timing import in_turn, summary
from traffic import Traffic, memory_of, synchronizations

FLOOR = 1.5  # copies of the logits
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Shape(NamedTuple):
    """Raw outputs of a head on padded images."""

    detector: str
    images: int
    height: int
    width: int
    anchors: int
    classes: int


TARGET = Shape("RetinaNet", 1, 800, 1344, 9, 80)
SHAPES = {
    "cpu": [
        Shape("RetinaNet", 2, 256, 320, 9, 4),
        TARGET,
        Shape("FCOS", 2, 800, 1344, 1, 80),
        Shape("RetinaNet", 1, 256, 320, 9, 1203),
    ],
    "cuda": [
        Shape("RetinaNet", 2, 256, 320, 9, 4),
        TARGET,
        Shape("RetinaNet", 2, 800, 1344, 9, 80),
        Shape("FCOS", 2, 800, 1344, 1, 80),
        Shape("RetinaNet", 2, 800, 1344, 9, 1203),  # one-hot targets take 30 GB
    ],
}
QUICK = [Shape("RetinaNet", 1, 64, 96, 3, 5), Shape("FCOS", 1, 64, 96, 1, 5)]


def cases(device, quick):
    """Every shape in both precisions."""
    shapes = QUICK if quick else SHAPES[device]
    return [{**shape._asdict(), "dtype": dtype} for shape in shapes for dtype in DTYPES]


def measure(case, device, seconds):
    """A row for each loss, and one for the copy."""
    torch.compiler.reset()  # it compiles for a few shapes only, then never again
    levels, labels = _inputs(case, device)
    names = {name: _step(loss, levels, labels, case["classes"]) for name, loss in LOSSES.items()}
    reasons = {name: failure(step, name) for name, step in names.items()}
    steps = {name: step for name, step in names.items() if not reasons[name]}
    copies = [torch.empty_like(x) for x in levels]
    steps["copy"] = lambda: [a.copy_(b.detach()) for a, b in zip(copies, levels)]
    times = in_turn(steps, seconds, warm_up=1 if device == "cpu" else 3)
    rows = [
        {
            "loss": name,
            "logits": sum(x.numel() for x in levels),
            **summary(times[name], times["fused"]),
            "floors": statistics.median(a / b / FLOOR for a, b in zip(times[name], times["copy"])),
        }
        for name in steps
    ]
    for row in rows[:-1]:
        row.update(footprint(LOSSES[row["loss"]], levels, labels, case["classes"], device))
    return rows + [{"loss": name, "reason": x} for name, x in reasons.items() if x]


def failure(step, name):
    """Why a loss cannot be measured here, after one step of it; "" if it can."""
    try:
        step()
    except torch.cuda.OutOfMemoryError:
        return "out of memory"
    except RuntimeError as e:
        if name != compiled.__name__:
            raise
        return f"does not compile: {type(e).__name__}"
    return ""


def _inputs(case, device):
    sizes = level_sizes((case["height"], case["width"]))
    num_channels = case["anchors"] * case["classes"]
    num_rows = case["anchors"] * sum(h * w for h, w in sizes)
    levels = made_up_logits(sizes, case["images"], num_channels, device, DTYPES[case["dtype"]])
    return levels, made_up_labels(case["images"], num_rows, case["classes"], device)


def _step(loss, levels, labels, num_classes):
    return lambda: torch.autograd.grad(loss(levels, labels, num_classes), levels)


def footprint(loss, levels, labels, num_classes, device):
    """What a loss moves and holds.

    Args:
        loss (callable): of rivals.py.
        levels, labels, num_classes: its arguments.
        device (str): of the levels.

    Returns:
        dict[str, float]: memory in units of the logits' own, "peak" with the gradients, "held"
        between forward and backward pass; how often the CPU waits for the GPU, "syncs"; and on a
        CPU, but for compiled code, "bytes_per_logit" that operators read and write.
    """
    num_logits = sum(x.numel() for x in levels)
    size = num_logits * levels[0].element_size()
    step = _step(loss, levels, labels, num_classes)
    found = {
        "peak": memory_of(step, device).peak / size,
        "held": memory_of(lambda: loss(levels, labels, num_classes), device).held / size,
        "syncs": synchronizations(step),
    }
    if device == "cpu" and loss is not compiled:
        with Traffic() as traffic:
            step()
        found["bytes_per_logit"] = traffic.bytes / num_logits
    return found


if __name__ == "__main__":
    run(
        __doc__,
        cases,
        measure,
        ["device", "heap", "detector", "images", "classes", "dtype", "loss"]
        + ["ms", "ms_10", "ms_90", "ratio", "floors", "peak", "held", "bytes_per_logit", "reason"],
    )
