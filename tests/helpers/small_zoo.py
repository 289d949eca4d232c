"""Configs of Detectron2, and small models of the same structure."""

import copy
import functools
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    ResNet,
    RetinaNet,
)
from detectron2.modeling.backbone import BottleneckBlock
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    StandardROIHeads,
)
from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, ListConfig, OmegaConf

from helpers.tiny import batch
from sampling_free import (
    SamplingFreeCascadeROIHeads,
    SamplingFreeFastRCNNOutputLayers,
    SamplingFreeFCOS,
    SamplingFreeRes5ROIHeads,
    SamplingFreeRetinaNet,
    SamplingFreeRPN,
    SamplingFreeStandardROIHeads,
)
from sampling_free.method.guides import Guide, make_guide

ROOT = Path(model_zoo.get_config_file("Base-RCNN-FPN.yaml")).parent
NOT_CONVERTIBLE = {
    "Misc/mmdet_mask_rcnn_R_50_FPN_1x.py": "MMDetDetector",
    "Misc/torchvision_imagenet_R_50.py": "ClassificationNet",
}
SWAPPED = {
    RetinaNet: SamplingFreeRetinaNet,
    FCOS: SamplingFreeFCOS,
    RPN: SamplingFreeRPN,
    StandardROIHeads: SamplingFreeStandardROIHeads,
    CascadeROIHeads: SamplingFreeCascadeROIHeads,
    Res5ROIHeads: SamplingFreeRes5ROIHeads,
    FastRCNNOutputLayers: SamplingFreeFastRCNNOutputLayers,
}
PRIOR = 0.01
NUM_STUFF = 54
SIZE = (64, 96)


def found(pattern):
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(pattern))


@functools.lru_cache(None)
def loaded(name):
    if name.endswith(".yaml"):
        return model_zoo.get_config(name)
    return LazyConfig.load(str(ROOT / name))


def stock(name):
    """A copy of a config of Detectron2."""
    return copy.deepcopy(loaded(name))


LAZY = [n for n in found("**/*.py") if n not in NOT_CONVERTIBLE and "model" in loaded(n)]
CASCADE_YAML = [n for n in found("Misc/*.yaml") if "cascade" in n]
YAML = found("COCO-Detection/*.yaml") + CASCADE_YAML
MASK_FPN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py"
MASK_C4 = "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py"
CASCADE = "common/models/cascade_rcnn.py"
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.py"
FCOS_CONFIG = "COCO-Detection/fcos_R_50_FPN_1x.py"
FAMILIES = [RETINANET, FCOS_CONFIG, MASK_FPN, MASK_C4, CASCADE]


# Small models of the same structure ------------------------------------------------------------


def thin_stages(norm, **kwargs):
    """Four ResNet stages of one block each, of an eighth of the usual widths."""
    widths = [32, 32, 64, 128, 256]
    return [
        ResNet.make_stage(
            BottleneckBlock,
            1,
            stride_per_block=[1 + (i > 0)],
            in_channels=widths[i],
            bottleneck_channels=8,
            out_channels=widths[i + 1],
            norm=norm,
        )
        for i in range(4)
    ]


def thinner(value):
    if isinstance(value, ShapeSpec):
        return ShapeSpec(thinner(value.channels), value.height, value.width, value.stride)
    if isinstance(value, DictConfig):  # what newer versions make of a ShapeSpec
        value.channels = thinner(value.channels)
        return value
    if isinstance(value, (list, tuple, ListConfig)):
        return [thinner(x) for x in value]
    return value if value < 32 else max(32, value // 8)


CHANNELS = {
    "channels",
    "in_channels",
    "out_channels",
    "bottleneck_channels",
    "conv_dim",
    "conv_dims",
    "fc_dims",
    "input_shape",
}


def shrink(node):
    """Makes a model node small in place: few channels, blocks and proposals; no SyncBN."""
    if isinstance(node, ListConfig):
        for child in node:
            shrink(child)
    if not isinstance(node, DictConfig):
        return
    target = node.get("_target_")
    if getattr(target, "__name__", "") == "make_default_stages":
        node._target_ = thin_stages
        del node["depth"]
    if getattr(target, "__name__", "") == "RegNet":
        node.update(depth=6, w_a=20, w_0=16, w_m=2.0, group_width=8)
    if getattr(target, "__name__", "") == "ViT":
        node.update(embed_dim=32, depth=2, num_heads=2, img_size=64, window_size=2)
        node.window_block_indexes = [0]
    if "square_pad" in node:
        node.square_pad = 96
    for key in list(node):
        if OmegaConf.is_interpolation(node, key):
            continue
        value = node[key]
        if value == "SyncBN":
            node[key] = "BN"
        elif key in CHANNELS and not isinstance(value, DictConfig):
            node[key] = thinner(value)
        elif key in ("pre_nms_topk", "post_nms_topk"):
            node[key] = (40, 40)
        else:
            shrink(value)


def inputs_of(num_classes, num_keypoints=17, seed=0):
    """Two images with all that any head of Detectron2's learns from."""
    inputs = batch(3, 2, size=SIZE, num_classes=num_classes, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for record in inputs:
        instances = record["instances"]
        boxes = instances.gt_boxes.tensor
        corners = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes.tolist()]
        instances.gt_masks = PolygonMasks(corners)
        points = torch.rand(len(boxes), num_keypoints, 2, generator=generator)
        points = boxes[:, None, :2] + points * (boxes[:, None, 2:] - boxes[:, None, :2])
        visible = torch.full((len(boxes), num_keypoints, 1), 2.0)
        instances.gt_keypoints = Keypoints(torch.cat([points, visible], dim=2))
        record["sem_seg"] = torch.randint(NUM_STUFF, SIZE, generator=generator)
        shifted = torch.cat([boxes, boxes + 1.5, boxes.flip(0) + 20])
        proposals = Instances(SIZE)
        proposals.proposal_boxes = Boxes(shifted)
        proposals.objectness_logits = torch.zeros(len(shifted))
        record["proposals"] = proposals
    return inputs


def training_step(model, inputs):
    """Losses of one step, which must be finite, as must its gradients, and move parameters."""
    model.train()
    torch.manual_seed(0)
    before = {k: v.clone() for k, v in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(x).all() for x in gradients.values())
    for p in model.parameters():
        if p.grad is not None and p.grad.abs().max() > 0:
            p.grad /= p.grad.abs().max()
    optimizer.step()
    assert any(not torch.equal(v, before[k]) for k, v in model.named_parameters())
    values = {k: v.item() for k, v in losses.items()}
    assert all(0 <= v < float("inf") for v in values.values()), values
    return values


def check_guides(values):
    """Each classification loss has the value that its guide gives it: r is in effect."""
    pairs = {("loss_rpn_cls", "loss_rpn_loc"): 1, ("loss_cls", "loss_box_reg"): 2}
    for i in range(3):
        pairs[f"loss_cls_stage{i}", f"loss_box_reg_stage{i}"] = 2
    if "loss_cls" in values and "loss_rpn_cls" not in values and "dense" in values:
        pairs["loss_cls", "loss_box_reg"] = 1
    for (cls, loc), weight in pairs.items():
        if cls in values:
            assert values[cls] == pytest.approx(weight * values[loc], rel=1e-4), values
    if "loss_fcos_cls" in values:
        mean = (values["loss_fcos_loc"] + values["loss_fcos_ctr"]) / 2
        assert values["loss_fcos_cls"] == pytest.approx(mean, rel=1e-4)


def classes_of(model):
    """What of a model samples or trains with focal loss, or is its sampling-free subclass."""
    return {type(m) for m in model.modules() if isinstance(m, tuple(SWAPPED))}


def check_step(model, num_classes):
    kinds = classes_of(model)
    assert kinds and kinds <= set(SWAPPED.values()), kinds
    training_step(model, inputs_of(num_classes))
    guided = [m for m in model.modules() if isinstance(getattr(m, "guide", None), Guide)]
    assert guided and {m.guide.key for m in guided} == {"gradient"}
    for module in guided:  # with the paper's it is known how large a loss has to be
        module.guide = make_guide("iteration", weight=module.guide.weight)
    values = training_step(model, inputs_of(num_classes))
    dense = isinstance(model, (RetinaNet, FCOS))
    check_guides({**values, "dense": 0} if dense else values)
    return values


def set_prior(node):
    if "prior" in node:
        assert node.prior == "auto"
        node.prior = PRIOR
    elif node.get("proposal_generator") is not None:
        assert node.proposal_generator.prior == "auto"
        node.proposal_generator.prior = PRIOR


def small(node):
    """The model of a converted node, made small."""
    shrink(node)
    set_prior(node)
    torch.manual_seed(0)
    return instantiate(node)


def leaves(node, prefix=""):
    """{key: text of the value} with interpolations as they are."""
    if isinstance(node, CfgNode):
        items = node.items()
    elif isinstance(node, DictConfig):
        items = ((k, node._get_node(k)) for k in node)
    elif isinstance(node, ListConfig):
        items = enumerate(node._get_node(i) for i in range(len(node)))
    else:
        value = node._value() if hasattr(node, "_value") else node
        kind = type(value).__name__
        return {prefix: kind if kind == "partial" else f"{kind} {value!r}"}
    if isinstance(node, (DictConfig, ListConfig)) and (node._is_none() or node._is_interpolation()):
        return {prefix: repr(node._value())}
    result = {}
    for key, value in items:
        result.update(leaves(value, f"{prefix}.{key}".lstrip(".")))
    return result or {prefix: "empty"}


def differing(a, b):
    """Keys whose values differ or that only one of the two has."""
    a, b = leaves(a), leaves(b)
    return {k for k in {**a, **b} if a.get(k) != b.get(k)}
