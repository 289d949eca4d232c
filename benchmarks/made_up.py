"""Inputs that nobody has to download.

N images   A anchors at each place   K classes   R anchors of all levels
"""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, PolygonMasks

STRIDES = (8, 16, 32, 64, 128)


def made_up_batch(num_images, size, num_classes, num_objects=7, seed=0):
    """Training inputs of noise; COCO has 7 objects in an image."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for _ in range(num_images):
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        corners = torch.rand(num_objects, 2, 2, generator=generator).sort(dim=1).values
        boxes = corners.flatten(1) * torch.tensor([size[1], size[0]] * 2)
        boxes[:, 2:] += 8  # pixels: no box without an area
        classes = torch.randint(num_classes, (num_objects,), generator=generator)
        instances = Instances(size, gt_boxes=Boxes(boxes), gt_classes=classes)
        batch.append({"image": image, "instances": instances})
    return batch


def fill_boxes_with_masks(batch):
    """Gives each object of a batch its box for a mask, in place."""
    for record in batch:
        boxes = record["instances"].gt_boxes.tensor
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].double().numpy()
        record["instances"].gt_masks = PolygonMasks([[polygon] for polygon in corners])


def level_sizes(size, strides=STRIDES):
    """(height, width) of each level's feature map, for an image of (height, width) in pixels."""
    return [(-(-size[0] // s), -(-size[1] // s)) for s in strides]


def made_up_logits(sizes, num_images, num_channels, device, dtype=torch.float32, seed=0):
    """Outputs of a head that has learned a little: most scores are about 3e-4.

    Args:
        sizes (list[tuple[int, int]]): (height, width) of each level.
        num_channels (int): A * K.

    Returns:
        list[Tensor]: (N, A*K, Hi, Wi), to be differentiated.
    """
    generator = torch.Generator(device).manual_seed(seed)
    shapes = [(num_images, num_channels, *size) for size in sizes]
    levels = [torch.randn(s, generator=generator, device=device) - 8 for s in shapes]
    return [x.to(dtype).requires_grad_() for x in levels]


def made_up_labels(num_images, num_rows, num_classes, device, share=1e-3, seed=0):
    """
    Args:
        share (float): of the rows that are foreground, and of those that are ignored; COCO has
            about 1e-3 on RetinaNet's anchors.

    Returns:
        Tensor: (N, R) int64: -1 ignored, 0..K-1 foreground, K background.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(num_images, num_rows, generator=generator)
    classes = torch.randint(num_classes, draws.shape, generator=generator)
    labels = torch.where(draws < share, classes, num_classes)
    return labels.masked_fill_(draws > 1 - share, -1).to(device)


def made_up_coco(num_images, num_boxes, num_classes=80, seed=0):
    """Annotations of about COCO's statistics, in COCO's format.

    The long side of an image has 640 pixels, three in four lie on their side. Log-normal are the
    size of a box, with a median of 55 pixels, and its aspect ratio, as in images of COCO.

    Args:
        num_images (int):
        num_boxes (int): of all images.

    Returns:
        dict: "images", "annotations" and "categories".
    """
    rng = np.random.default_rng(seed)
    usual = rng.choice([427, 480], num_images, p=[0.4, 0.6])
    short = np.where(rng.random(num_images) < 0.5, usual, rng.integers(333, 641, num_images))
    lies = rng.random(num_images) < 0.75
    widths, heights = np.where(lies, 640, short), np.where(lies, short, 640)
    crowding = rng.gamma(1.2, size=num_images)  # images differ in how many boxes they have
    owners = np.sort(rng.choice(num_images, num_boxes, p=crowding / crowding.sum()))
    size = np.exp(rng.normal(4.0, 1.0, num_boxes))  # of log(pixels)
    root = np.exp(rng.normal(-0.15, 0.72, num_boxes) / 2)
    limits = np.stack([widths, heights], axis=1)[owners]
    sides = np.clip(np.stack([size * root, size / root], axis=1), 2, limits)
    corners = rng.random((num_boxes, 2)) * (limits - sides)
    boxes = np.hstack([corners, sides]).round(2).tolist()
    classes = rng.integers(num_classes, size=num_boxes).tolist()
    return {
        "images": [
            {"id": i, "file_name": f"{i:012}.jpg", "height": h, "width": w}
            for i, (h, w) in enumerate(zip(heights.tolist(), widths.tolist()))
        ],
        "annotations": [
            {
                "id": i,
                "image_id": owner,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for i, (owner, category, box) in enumerate(zip(owners.tolist(), classes, boxes))
        ],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(num_classes)],
    }
