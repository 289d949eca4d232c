#!/usr/bin/env python
"""What it costs that every proposal takes part in the RoI heads, beside Detectron2's 512 sampled.

    python benchmarks/bench_roi.py --output results/bench_roi.csv

From proposals to the gradients of features and weights, with the box head alone and with the mask
head too. Features and weights are random, but the proposals are such as a trained RPN gives: 1000
an image, apart by its NMS, some of them near an object, so that of 80 images of COCO one proposal
in ten is foreground. The objects are those of two images of COCO_Tiny, a subset of COCO's
train2017, if $DETECTRON2_DATASETS has a folder coco_tiny: with as many objects as the median image,
and with more than nine in ten; else they are made up.
"""

import os

import detectron2.data.transforms as T
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetMapper
from detectron2.data.datasets import load_coco_json
from detectron2.layers import nms
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from made_up import fill_boxes_with_masks, level_sizes, made_up_batch
from rows import run
from sampling_free.cli import load_config
from timing import in_turn, summary
from traffic import memory_of, synchronizations

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
NUM_PROPOSALS = 1000  # of an image, after NMS
NMS = 0.7  # Detectron2's
COPIES = 30  # proposals near each object, before NMS
ANNOTATIONS = os.path.join("annotations", "instances_train2017.json")  # of COCO_Tiny
MADE_UP = "made up"
QUANTILES = {"COCO_Tiny, median image": 0.5, "COCO_Tiny, crowded image": 0.9}
CONFIGS = {"box": "faster_rcnn/faster_rcnn", "box and mask": "mask_rcnn/mask_rcnn"}
VARIANTS = {  # the end of the config, and an override
    "512 sampled": ("_sampled", []),
    "all": ("", []),
    "all, 128 masks": ("", ["model.roi_heads.max_mask_positives=128"]),
}


def cases(device, quick):
    """With both heads, on what images there are."""
    size = (64, 96) if quick else (800, 1333)
    is_there = os.path.isfile(os.path.join(coco_tiny(), ANNOTATIONS))
    data = list(QUANTILES) if is_there and not quick else [MADE_UP]
    return [
        {
            "heads": heads,
            "data": x,
            "images": 1 if device == "cpu" else 2,
            "height": size[0],
            "width": size[1],
        }
        for heads in CONFIGS
        for x in data
    ]


def measure(case, device, seconds):
    """A row for the sample, and for what is done without it."""
    size = case["height"], case["width"]
    if case["data"] == MADE_UP:
        targets = made_up_objects(case["images"], size)
    else:
        targets = coco_tiny_objects(case["images"], size, QUANTILES[case["data"]])
    targets = [x.to(device) for x in targets]
    torch.manual_seed(0)
    proposals = [proposals_near(x) for x in targets]
    features = made_up_features(targets, device)
    variants = {k: v for k, v in VARIANTS.items() if case["heads"] != "box" or "mask" not in k}
    steps, storages = {}, {}
    for name, (end, overrides) in variants.items():
        path = f"configs/{CONFIGS[case['heads']]}_R_50_FPN_1x{end}.py"
        torch.manual_seed(0)
        heads = instantiate(load_config(path, overrides).model.roi_heads).to(device).train()
        storages[name] = EventStorage()
        steps[name] = step_of(heads, features, proposals, targets, storages[name])
    times = in_turn(steps, seconds, least=3, warm_up=1 if device == "cpu" else 3)
    peaks = {name: memory_of(step, device).peak / 1e6 for name, step in steps.items()}
    return [
        {
            "variant": name,
            "objects": sum(map(len, targets)),
            "foreground": storages[name].latest()["roi_head/num_fg_samples"][0],
            **summary(times[name], times["512 sampled"]),
            "peak_mb": peaks[name],
            "more_mb": peaks[name] - peaks["512 sampled"],
            "syncs": synchronizations(step),
        }
        for name, step in steps.items()
    ]


def step_of(heads, features, proposals, targets, storage):
    """A forward and backward pass of RoI heads, as a callable; ``storage`` gets their numbers."""

    def step():
        with storage:
            # They write labels into what they are given.
            copies = [Instances(x.image_size, **x.get_fields()) for x in proposals]
            _, losses = heads(None, features, copies, targets)
        sum(losses.values()).backward()
        for x in (*heads.parameters(), *features.values()):
            x.grad = None

    return step


def made_up_features(targets, device):
    """dict[str, Tensor]: of each level (N, 256, Hi, Wi), to be differentiated."""
    largest = [max(x.image_size[i] for x in targets) for i in (0, 1)]
    padded = [-(-x // 32) * 32 for x in largest]
    sizes = level_sizes(padded, STRIDES.values())
    return {
        name: torch.randn(len(targets), 256, *size, device=device).requires_grad_()
        for name, size in zip(STRIDES, sizes)
    }


def proposals_near(targets):
    """Proposals of an image as a trained RPN gives them, in short.

    Each object has copies with corners that are moved by up to a quarter of its sides; what else
    there is room for is boxes of any place and size. NMS leaves those that are apart.

    Args:
        targets (Instances): the objects of an image.

    Returns:
        Instances: "proposal_boxes", NUM_PROPOSALS or fewer, and "objectness_logits".
    """
    height, width = targets.image_size
    objects = targets.gt_boxes.tensor
    sides = (objects[:, 2:] - objects[:, :2]).repeat(1, 2)
    moves = (torch.rand(COPIES, *objects.shape, device=objects.device) - 0.5) / 2
    near = (objects + moves * sides).flatten(0, 1)
    corners = torch.rand(4 * NUM_PROPOSALS, 2, 2, device=objects.device).sort(dim=1).values
    anywhere = corners.flatten(1) * torch.tensor([width, height] * 2, device=objects.device)
    boxes = Boxes(torch.cat([near, anywhere]))
    boxes.clip((height, width))
    scores = torch.rand(len(boxes), device=objects.device)
    scores[: len(near)] += 1  # the RPN finds objects first
    keep = boxes.nonempty(threshold=1).nonzero().squeeze(1)
    keep = keep[nms(boxes.tensor[keep], scores[keep], NMS)[:NUM_PROPOSALS]]
    return Instances((height, width), proposal_boxes=boxes[keep], objectness_logits=scores[keep])


def made_up_objects(num_images, size):
    """list[Instances]: with boxes for masks."""
    batch = made_up_batch(num_images, size, 80)
    fill_boxes_with_masks(batch)
    return [x["instances"] for x in batch]


def coco_tiny():
    """The folder where it should be."""
    return os.path.join(os.environ.get("DETECTRON2_DATASETS", "datasets"), "coco_tiny")


def coco_tiny_objects(num_images, size, quantile):
    """The objects of images, resized as Detectron2 does it.

    Args:
        num_images (int):
        size (tuple[int, int]): of ``ResizeShortestEdge``: short side, and the long one at most.
        quantile (float): in [0, 1], of the images in the order of how many objects they have.

    Returns:
        list[Instances]: with masks.
    """
    path, folder = os.path.join(coco_tiny(), ANNOTATIONS), os.path.join(coco_tiny(), "train2017")
    dicts = load_coco_json(path, folder, "coco_tiny_train")
    dicts.sort(key=lambda x: len(x["annotations"]))
    first = round(quantile * (len(dicts) - num_images))
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[T.ResizeShortestEdge(*size)],
        image_format="BGR",
        use_instance_mask=True,
    )
    return [mapper(x)["instances"] for x in dicts[first : first + num_images]]


if __name__ == "__main__":
    run(
        __doc__,
        cases,
        measure,
        ["device", "heap", "heads", "data", "objects", "variant", "foreground"]
        + ["ms", "ms_10", "ms_90", "ratio", "peak_mb", "syncs", "reason"],
        heaps=["kept"],
    )
