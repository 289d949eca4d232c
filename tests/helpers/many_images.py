"""Many small images with objects of all kinds, for the sparse matchers, and real ones."""

import json
import os
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from sampling_free.counting.sparse.images import Images

ROOT = Path(__file__).resolve().parents[2]
NUM_CLASSES = 10**6  # more than there are objects: each is a class of its own


def objects_in(rng, size, most):
    """(G, 4) float32: tiny to huge, thin, alike, beyond the border, on the lines of the grid."""
    num = rng.integers(most + 1)
    sides = np.exp(rng.uniform(np.log(1), np.log(1.5 * max(size)), (num, 2)))
    centers = rng.uniform(-0.1, 1.1, (num, 2)) * size[::-1]
    on_lines = rng.random(num) < 0.4
    centers[on_lines] = (centers[on_lines] / 4).round() * 4
    boxes = np.hstack([centers - sides / 2, centers + sides / 2])
    whole = rng.random(num) < 0.3
    boxes[whole] = (boxes[whole] / 4).round() * 4
    inside = rng.random(num) < 0.6
    boxes[inside] = boxes[inside].clip(0, (size[::-1] * 2))
    boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    if len(boxes) > 0 and rng.random() < 0.5:
        boxes = np.concatenate([boxes, boxes[rng.integers(len(boxes), size=2)]])
    return boxes.astype(np.float32)


def made_up_images(seed, strides, num_images, *, most=10, longest=300):
    """``Images`` of a few pixels up to the longest side; some have no object.

    Args:
        seed (int or list[int]): of numpy.
    """
    rng = np.random.default_rng(seed)
    sizes = [tuple(x) for x in rng.integers(4, longest, (num_images, 2)).tolist()]
    return images_of([objects_in(rng, size, most) for size in sizes], sizes, strides)


def images_of(boxes, sizes, strides):
    """``Images`` from a list of (G, 4), a list of (height, width), and the levels' strides."""
    boxes = [np.asarray(x, np.float32).reshape(-1, 4) for x in boxes]
    return Images(
        np.concatenate(boxes),
        np.cumsum([0, *map(len, boxes)]),
        -(-np.array(sizes)[:, None] // np.array(strides)[:, None]),
    )


def coco_tiny(strides):
    """``Images`` of COCO_Tiny's train split as RetinaNet's 800/1333 recipe resizes and pads it."""
    data = Path(os.environ.get("DETECTRON2_DATASETS", ROOT.parent / "shared" / "data"))
    path = data / "coco_tiny" / "annotations" / "instances_train2017.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    content = json.loads(path.read_text())
    boxes, sizes = [], []
    for image in content["images"]:
        shape = (image["height"], image["width"])
        resize = T.ResizeShortestEdge(800, 1333).get_transform(np.empty((*shape, 3), np.uint8))
        of_image = [x for x in content["annotations"] if x["image_id"] == image["id"]]
        found = np.array([x["bbox"] for x in of_image if not x["iscrowd"]]).reshape(-1, 4)
        found[:, 2:] += found[:, :2]
        boxes.append(resize.apply_box(found) if len(found) else found)
        sizes.append((-(-resize.new_h // 32) * 32, -(-resize.new_w // 32) * 32))
    return images_of(boxes, sizes, strides)


def anchors_of(generator, shapes):
    """list[Boxes] of each level, whose feature maps have shapes (L, 2)."""
    return generator([torch.empty(1, 1, *shape) for shape in shapes.tolist()])


def check_every_anchor(found, images, generator, label_anchors):
    """Compares with a detector's own method, anchor by anchor.

    Args:
        found (Labeled): of a sparse matcher.
        images (Images):
        generator (DefaultAnchorGenerator):
        label_anchors (callable): the method, of a detector of NUM_CLASSES classes.

    Returns:
        int: how many anchors are foreground.
    """
    total = 0
    for i, shapes in enumerate(images.shapes):
        begin, end = images.starts[i : i + 2]
        levels = anchors_of(generator, shapes)
        instances = Instances((1, 1), gt_boxes=Boxes(torch.from_numpy(images.boxes[begin:end])))
        instances.gt_classes = torch.arange(begin, end)
        expected = label_anchors(levels, [instances])[0][0].numpy()
        expected[expected == NUM_CLASSES] = -1

        of_image = found.image == i
        anchor = found.anchor[of_image]
        assert len(np.unique(anchor)) == len(anchor)
        ours = np.full(len(expected), -1)
        ours[anchor] = found.object[of_image]
        assert ours.tolist() == expected.tolist()
        level = np.repeat(np.arange(len(levels)), [len(x) for x in levels])
        assert found.level[of_image].tolist() == level[anchor].tolist()
        total += len(anchor)
    assert total == len(found.image) and (found.object >= 0).all()
    return total


def sorted_rows(found):
    """list[tuple] of a Labeled, in one order."""
    return sorted(zip(*(x.tolist() for x in found)))
