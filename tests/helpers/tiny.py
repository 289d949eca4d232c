"""What several tests share: the smallest real RetinaNet, made-up images, and captured log lines."""

import contextlib
import logging

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage
from PIL import Image
from torch import nn

from sampling_free.detectors.bias import ClassifierBias
from sampling_free.detectors.retinanet import SamplingFreeRetinaNet

WIDTH = 8  # channels everywhere
STRIDES = [8, 16, 32, 64, 128]


class TinyBottomUp(Backbone):
    """Three convolutions that see every pixel, with outputs of stride 8, 16 and 32."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 7, stride=4, padding=3)
        self.stages = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, 2, 1) for _ in range(3))
        self._out_features = ("c3", "c4", "c5")  # TorchScript wants a tuple
        self._out_feature_channels = dict.fromkeys(self._out_features, WIDTH)
        self._out_feature_strides = dict(zip(self._out_features, (8, 16, 32)))

    def forward(self, x):
        x, outputs = self.stem(x), {}
        for name, stage in zip(self._out_features, self.stages):
            outputs[name] = x = stage(x.relu())
        return outputs


def tiny_fpn(**kwargs):
    """Detectron2's FPN with p3 to p7 on :class:`TinyBottomUp`."""
    names = ["c3", "c4", "c5"]
    top = LastLevelP6P7(WIDTH, WIDTH, in_feature="c5")
    return FPN(TinyBottomUp(), names, WIDTH, top_block=top, **kwargs)


def with_papers_guide(cls, kwargs):
    """Arguments of a detector or a part of one, with the guide of the paper if it has guides."""
    return {"guide": "iteration", **kwargs} if issubclass(cls, ClassifierBias) else kwargs


def tiny_retinanet(
    cls=SamplingFreeRetinaNet,
    num_classes=3,
    *,
    backbone=None,
    sizes=((12, 16), (24, 32), (48, 64), (96, 128), (192, 256)),
    ratios=(0.5, 1.0, 2.0),
    thresholds=(0.4, 0.5),
    labels=(0, -1, 1),
    low_quality=True,
    seed=0,
    **kwargs,
):
    """A RetinaNet of 8 channels with seeded weights; ``kwargs`` go to ``cls``.

    The guide is the paper's unless they name one: its losses are known in closed form.
    """
    kwargs = with_papers_guide(cls, kwargs)
    torch.manual_seed(seed)
    backbone = backbone or tiny_fpn()
    features = sorted(backbone.output_shape(), key=lambda f: backbone.output_shape()[f].stride)
    generator = DefaultAnchorGenerator(
        sizes=[list(s) for s in sizes][: len(features)],
        aspect_ratios=[list(ratios)],
        strides=[backbone.output_shape()[f].stride for f in features],
    )
    head = RetinaNetHead(
        input_shape=[ShapeSpec(channels=WIDTH)] * len(features),
        num_classes=num_classes,
        num_anchors=generator.num_anchors[0],
        conv_dims=[WIDTH],
    )
    return cls(
        backbone=backbone,
        head=head,
        head_in_features=features,
        anchor_generator=generator,
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        anchor_matcher=Matcher(list(thresholds), list(labels), low_quality),
        num_classes=num_classes,
        pixel_mean=[103.53, 116.28, 123.675],
        pixel_std=[57.375, 57.120, 58.395],
        **kwargs,
    )


def stock_retinanet(**kwargs):
    """The same with Detectron2's own class."""
    return tiny_retinanet(RetinaNet, **kwargs)


def random_boxes(rng, size, num):
    """(num, 4) XYXY boxes inside an image of (height, width), of sides from 6 pixels up."""
    height, width = size
    corner = rng.uniform(0, 0.6, (num, 2)) * (width, height)
    sides = np.maximum(rng.uniform(0.1, 0.9, (num, 2)) * ((width, height) - corner), 6)
    return np.hstack([corner, np.minimum(corner + sides, (width, height))])


def batch(*nums, size=(64, 96), num_classes=3, seed=0):
    """Training inputs: an image with that many objects for each of ``nums``."""
    rng = np.random.default_rng(seed)
    inputs = []
    for num in nums:
        image = torch.from_numpy(rng.integers(0, 256, (3, *size), dtype=np.uint8))
        boxes = torch.from_numpy(random_boxes(rng, size, num).astype(np.float32))
        classes = torch.from_numpy(rng.integers(num_classes, size=num))
        instances = Instances(size, gt_boxes=Boxes(boxes), gt_classes=classes)
        inputs.append({"image": image, "instances": instances})
    return inputs


def write_dicts(folder, sizes, nums, num_classes=3, seed=0, crowd=()):
    """Dataset dicts with real PNG files; the image indices in ``crowd`` have one crowd object."""
    rng = np.random.default_rng(seed)
    dicts = []
    for i, (size, num) in enumerate(zip(sizes, nums)):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
        annotations = [
            {
                "bbox": (box - [0, 0, *box[:2]]).round(2).tolist(),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": int(rng.integers(num_classes)),
                "iscrowd": int(i in crowd and k == 0),
            }
            for k, box in enumerate(random_boxes(rng, size, num))
        ]
        record = {"file_name": str(path), "image_id": i, "height": size[0], "width": size[1]}
        dicts.append({**record, "annotations": annotations})
    return dicts


def mapper_of(*augmentations, **kwargs):
    return DatasetMapper(True, augmentations=list(augmentations), image_format="BGR", **kwargs)


def anchor_order(output, dims):
    """(N, H * W * A, dims) from a level's (N, A * dims, H, W), one anchor after the other."""
    _, channels, height, width = output.shape
    rows = [
        output[:, a * dims : (a + 1) * dims, y, x]
        for y in range(height)
        for x in range(width)
        for a in range(channels // dims)
    ]
    return torch.stack(rows, dim=1)


def train_step(model, inputs):
    """(losses, event storage's latest numbers, gradients by parameter)."""
    model.train()
    with EventStorage() as storage:
        losses = model(inputs)
        latest = {k: v for k, (v, _) in storage.latest().items()}
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {k: v.detach() for k, v in losses.items()}, latest, gradients


@contextlib.contextmanager
def log_lines(name="sampling_free", level=logging.INFO):
    """Collects the messages of a logger, also after Detectron2 cut it off from the root logger."""
    lines = []
    handler = logging.Handler(level)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger(name)
    old = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(old)
