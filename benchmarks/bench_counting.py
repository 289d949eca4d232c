#!/usr/bin/env python
"""Counting foreground and background for the prior, in a data set of the size of COCO's train2017.

    python benchmarks/bench_counting.py --output results/bench_counting.csv

The annotation file is made up: 117,266 images with 860,000 boxes of about COCO's statistics. It is
read as Detectron2 does it, and counted for each detector: once the whole of it, with images resized
to a short side of 800 pixels, and for RetinaNet a part of it with all twelve views of its recipe.
The detector's own label of every anchor, by brute force, is taken on the first images alone. The
CPU counts, GPU or not.
"""

import functools
import json
import os
import tempfile

import detectron2.data.transforms as T
from detectron2.config import instantiate
from detectron2.data import DatasetMapper
from detectron2.data.datasets import load_coco_json

from made_up import made_up_coco
from rows import run
from sampling_free.cli import load_config
from sampling_free.counting.count import count_anchors, count_by_brute_force
from timing import now

IMAGES, BOXES = 117_266, 860_000  # of the annotation file
PART = 10_000  # images that are counted with all views
QUICK = 20
SAMPLE = 240  # views that are counted by brute force too
CONFIGS = {
    "RetinaNet": "configs/retinanet/retinanet_R_50_FPN_1x.py",
    "RPN": "configs/faster_rcnn/faster_rcnn_R_50_FPN_1x.py",
    "FCOS": "configs/fcos/fcos_R_50_FPN_1x.py",
    "ATSS": "configs/atss/atss_R_50_FPN_1x.py",
}
SIDES = {1: 800, 12: (640, 672, 704, 736, 768, 800)}  # short side, by the number of views


def cases(device, quick):
    """Every detector; none on a GPU."""
    if device == "cuda":
        return []
    return [
        *({"detector": name, "views": 1, "images": QUICK if quick else IMAGES} for name in CONFIGS),
        {"detector": "RetinaNet", "views": 12, "images": QUICK if quick else PART},
    ]


def measure(case, device, seconds):
    """A row for the count, and one for the detector's own label of every anchor."""
    num_boxes = max(BOXES * case["images"] // IMAGES, 1)
    dicts, seconds_to_read = coco_sized(case["images"], num_boxes)
    flips = [T.RandomFlip()] if case["views"] > 1 else []
    resize = T.ResizeShortestEdge(SIDES[case["views"]], 1333, "choice")
    mapper = DatasetMapper(True, augmentations=[resize, *flips], image_format="BGR")
    model = instantiate(load_config(CONFIGS[case["detector"]], []).model)
    sample = dicts[: SAMPLE // case["views"]]
    count_anchors(model, sample, mapper, progress=False)  # not measured: the first call
    sparse, whole = timed(count_anchors, model, dicts, mapper)
    brute, of_sample = timed(count_by_brute_force, model, sample, mapper)
    again = count_anchors(model, sample, mapper, progress=False)
    ms, brute_ms = 1e3 * sparse / len(dicts), 1e3 * brute / len(sample)
    return [
        {
            "method": "near an object",
            "counted": len(dicts),
            "boxes": num_boxes,
            "seconds": sparse,
            "ms_per_image": ms,
            "ratio": ms / brute_ms,
            "foreground": float(whole.foreground.sum()),
            "same": same(again, of_sample),
            "seconds_to_read": seconds_to_read,
        },
        {
            "method": "every anchor",
            "counted": len(sample),
            "seconds": brute,
            "ms_per_image": brute_ms,
            "ratio": 1.0,
            "foreground": float(of_sample.foreground.sum()),
        },
    ]


@functools.lru_cache(maxsize=None)
def coco_sized(num_images, num_boxes):
    """Dataset dicts of a made-up annotation file, and the seconds that it took to read it."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "instances.json")
        with open(path, "w") as f:
            json.dump(made_up_coco(num_images, num_boxes), f)
        start = now()
        return load_coco_json(path, ""), now() - start


def timed(count, *args):
    """Seconds of a count, and the counts."""
    start = now()
    counts = count(*args, progress=False)
    return now() - start, counts


def same(a, b):
    """Whether two counts agree in every level and class."""
    pairs = (
        (a.valid, b.valid),
        (a.foreground, b.foreground),
        (a.foreground_per_class, b.foreground_per_class),
    )
    return all(abs(x - y).max() < 1e-6 for x, y in pairs)


if __name__ == "__main__":
    run(
        __doc__,
        cases,
        measure,
        ["detector", "views", "method", "counted", "seconds", "ms_per_image", "ratio", "same"],
        heaps=["kept"],
    )
