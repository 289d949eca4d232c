"""convert(): every config of Detectron2's own, the user's own parts kept, refusals in one line.

Configs are converted as they are and made small afterwards, so that a training step is cheap.
"""

import copy
import functools
import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    GeneralizedRCNN,
    PanopticFPN,
    ProposalNetwork,
    ResNet,
    RetinaNet,
    build_model,
)
from detectron2.modeling.backbone import BottleneckBlock
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    StandardROIHeads,
)
from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, ListConfig, OmegaConf
from tiny import batch, tiny_fpn
from torch import nn

from sampling_free import (
    BadInput,
    SamplingFreeCascadeROIHeads,
    SamplingFreeFastRCNNOutputLayers,
    SamplingFreeFCOS,
    SamplingFreeRes5ROIHeads,
    SamplingFreeRetinaNet,
    SamplingFreeRPN,
    SamplingFreeStandardROIHeads,
    add_sampling_free_config,
    convert,
)

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
def _loaded(name):
    if name.endswith(".yaml"):
        return model_zoo.get_config(name)
    return LazyConfig.load(str(ROOT / name))


def stock(name):
    """A copy of a config of Detectron2."""
    return copy.deepcopy(_loaded(name))


LAZY = [n for n in found("**/*.py") if n not in NOT_CONVERTIBLE and "model" in _loaded(n)]
CASCADE_YAML = [n for n in found("Misc/*.yaml") if "cascade" in n]
YAML = found("COCO-Detection/*.yaml") + CASCADE_YAML
MASK_FPN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py"
MASK_C4 = "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py"
CASCADE = "common/models/cascade_rcnn.py"
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.py"
FCOS_CONFIG = "COCO-Detection/fcos_R_50_FPN_1x.py"
FAMILIES = [RETINANET, FCOS_CONFIG, MASK_FPN, MASK_C4, CASCADE]


def test_every_config_of_a_detector_is_found():
    folders = {str(Path(n).parent) for n in LAZY}
    assert folders == {
        "COCO-Detection",
        "COCO-InstanceSegmentation",
        "COCO-Keypoints",
        "COCO-PanopticSegmentation",
        "common/models",
        "new_baselines",
    }
    in_models = [n for n in LAZY if n.startswith("common/")]
    assert len(LAZY) - len(in_models) >= 21 and len(in_models) >= 7 and CASCADE in LAZY
    has_vitdet = (ROOT / "common/models/mask_rcnn_vitdet.py").exists()
    assert has_vitdet == ("common/models/mask_rcnn_vitdet.py" in LAZY)
    rest = set(found("**/*.py")) - set(LAZY) - set(NOT_CONVERTIBLE)
    assert all(n.startswith("common/") and not n.startswith("common/models") for n in rest), rest
    assert len(CASCADE_YAML) == 4 and len(YAML) - len(CASCADE_YAML) >= 16


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


# Every config of Detectron2 --------------------------------------------------------------------


class Mlp(nn.Sequential):
    def __init__(self, in_features, hidden_features, act_layer):
        first = nn.Linear(in_features, hidden_features)
        super().__init__(first, act_layer(), nn.Linear(hidden_features, in_features))


@pytest.fixture
def timm(monkeypatch):
    """Stands in for the two layers of it that Detectron2's ViT has, where it is not installed."""
    if importlib.util.find_spec("timm") is None:
        layers = SimpleNamespace(DropPath=nn.Dropout, Mlp=Mlp)
        for name in ("timm", "timm.models", "timm.models.layers"):
            monkeypatch.setitem(sys.modules, name, layers)


@pytest.mark.parametrize("name", LAZY)
def test_every_lazy_config_is_converted_and_trained(name, timm):
    node = convert(stock(name), quiet=True).model
    num_classes = node.num_classes if "num_classes" in node else node.roi_heads.num_classes
    model = small(node)
    values = check_step(model, num_classes)
    assert ("loss_mask" in values) == ("mask_head" in node.get("roi_heads", {}))
    assert ("loss_keypoint" in values) == ("keypoint" in name)
    assert ("loss_sem_seg" in values) == ("panoptic" in name)
    stages = [k for k in values if k.startswith("loss_cls_stage")]
    assert len(stages) == (3 if name == CASCADE else 0)


def small_yaml(cfg, dconv=False):
    """A CfgNode made small in place."""
    cfg.defrost()
    m = cfg.MODEL
    m.DEVICE = "cpu"
    m.SAMPLING_FREE.PRIOR = PRIOR
    gn = m.RESNETS.NORM == "GN"
    m.RESNETS.DEPTH = 50
    m.RESNETS.STEM_OUT_CHANNELS = 32 if gn else 8
    m.RESNETS.RES2_OUT_CHANNELS = 32
    m.RESNETS.NUM_GROUPS = min(m.RESNETS.NUM_GROUPS, 4)
    m.RESNETS.WIDTH_PER_GROUP = (32 if gn else 8) // m.RESNETS.NUM_GROUPS
    if not dconv:
        m.RESNETS.DEFORM_ON_PER_STAGE = [False] * 4
    m.FPN.OUT_CHANNELS = m.SEM_SEG_HEAD.CONVS_DIM = 32
    m.RPN.PRE_NMS_TOPK_TRAIN = m.RPN.POST_NMS_TOPK_TRAIN = 40
    m.ROI_BOX_HEAD.FC_DIM = 16
    m.ROI_BOX_HEAD.CONV_DIM = m.ROI_MASK_HEAD.CONV_DIM = 32
    return cfg


@pytest.mark.parametrize("name", YAML)
def test_every_yaml_config_is_converted_and_trained(name):
    cfg = convert(stock(name), quiet=True)
    has_deform = any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE)
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    assert num_classes == cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80
    if has_deform:  # its layers need Detectron2's compiled part, some only to run
        try:
            model = build_model(small_yaml(cfg.clone(), dconv=True))
        except ImportError as e:
            assert "detectron2._C" in str(e)
        else:
            assert any("Deform" in type(m).__name__ for m in model.modules())
            assert classes_of(model) <= set(SWAPPED.values())
    torch.manual_seed(0)
    model = build_model(small_yaml(cfg))
    values = check_step(model, num_classes)
    assert has_deform == ("dconv" in name)
    assert ("loss_rpn_cls" in values) == ("fast_rcnn" not in name and "retinanet" not in name)
    assert ("loss_mask" in values) == ("mask" in name or "panoptic" in name)
    assert ("loss_cls_stage2" in values) == ("cascade" in name)
    assert (type(model) is ProposalNetwork) == ("/rpn_" in name)
    assert (type(model) is PanopticFPN) == ("panoptic" in name) == ("loss_sem_seg" in values)


# What changes, and what does not ---------------------------------------------------------------


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


MEASURED = "  MODEL.SAMPLING_FREE.PRIOR: None, measured before the first iteration"


def converted(cfg, capsys, **kwargs):
    """The result and the printed changes as {key: (old, new)}.

    What is there and no longer used has "(unused)" for new.
    """
    capsys.readouterr()
    result = convert(cfg, **kwargs)
    out, err = capsys.readouterr()
    assert err == ""
    if kwargs.get("quiet"):
        assert out == ""
        return result, {}
    first, *rest = out.splitlines()
    assert first == "Made sampling-free:"
    changes = {}
    for line in rest:
        if line in ("  nothing left to change", MEASURED):
            continue
        key, old, new = re.fullmatch(r"  ([\w.\[\]]+): (.*) -> (.*)", line).groups()
        assert key not in changes and old != new
        changes[re.sub(r"\[(\d+)\]", r".\1", key)] = old, new
    return result, changes


def check_printed(keys, changes):
    """Exactly what differs has been printed; what is unused has not changed."""
    unused = {k for k, (_, new) in changes.items() if new == "(unused)"}
    assert not unused & keys
    changes = set(changes) - unused
    targets = {k[: -len("._target_")] if k.endswith("._target_") else k for k in keys}
    unprinted = {k for k in targets if not any(f"{k}.".startswith(f"{c}.") for c in changes)}
    unmade = {c for c in changes if not any(f"{k}.".startswith(f"{c}.") for k in targets)}
    assert not unprinted and not unmade, (unprinted, unmade)


@pytest.mark.parametrize("name", LAZY)
def test_only_what_is_printed_changes_in_a_lazy_config(name, capsys):
    cfg = stock(name)
    result, changes = converted(cfg, capsys)
    assert differing(cfg, stock(name)) == set()  # the argument
    check_printed(differing(cfg, result), changes)
    again, more = converted(result, capsys)
    assert more == {} and differing(result, again) == set()


@pytest.mark.parametrize("name", YAML)
def test_only_what_is_printed_changes_in_a_yaml_config(name, capsys):
    cfg = stock(name)
    result, changes = converted(cfg, capsys)
    assert cfg == _loaded(name)
    added = get_cfg()
    add_sampling_free_config(added)
    keys = differing(cfg, result)
    new = {k for k in keys if k.startswith("MODEL.SAMPLING_FREE.")}
    assert new == {k for k in leaves(added) if k not in leaves(cfg)}
    check_printed(keys - new, changes)
    again, more = converted(result, capsys)
    assert more == {} and again == result


EXPECTED = {
    RETINANET: {
        "model": ("RetinaNet", "SamplingFreeRetinaNet"),
        "model.focal_loss_alpha": ("0.25", "(dropped)"),
        "model.focal_loss_gamma": ("2.0", "(dropped)"),
        "model.prior": ("(none)", "auto"),
        "model.test_score_thresh": ("(none)", "0.001"),
    },
    FCOS_CONFIG: {
        "model": ("FCOS", "SamplingFreeFCOS"),
        "model.focal_loss_alpha": ("0.25", "(dropped)"),
        "model.focal_loss_gamma": ("2.0", "(dropped)"),
        "model.prior": ("(none)", "auto"),
        "model.test_score_thresh": ("0.2", "0.0316"),
    },
    MASK_FPN: {
        "model.proposal_generator": ("RPN", "SamplingFreeRPN"),
        "model.proposal_generator.loss_weight": (
            "(none)",
            "{'loss_rpn_cls': 1.0, 'loss_rpn_loc': 0.25}",
        ),
        "model.proposal_generator.batch_size_per_image": ("256", "(dropped)"),
        "model.proposal_generator.positive_fraction": ("0.5", "(dropped)"),
        "model.proposal_generator.prior": ("(none)", "auto"),
        "model.roi_heads": ("StandardROIHeads", "SamplingFreeStandardROIHeads"),
        "model.roi_heads.batch_size_per_image": ("512", "(dropped)"),
        "model.roi_heads.positive_fraction": ("0.25", "(dropped)"),
        "model.roi_heads.box_predictor": (
            "FastRCNNOutputLayers",
            "SamplingFreeFastRCNNOutputLayers",
        ),
        "model.roi_heads.box_predictor.loss_weight": (
            "(none)",
            "{'loss_cls': 1.0, 'loss_box_reg': 0.25}",
        ),
        "model.roi_heads.box_predictor.test_score_thresh": ("0.05", "0.001"),
    },
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_changes_of_each_family_are_these(name, capsys):
    assert converted(stock(name), capsys)[1] == EXPECTED[name]


def test_each_stage_of_a_cascade_is_converted(capsys):
    node, changes = converted(stock(CASCADE), capsys)
    assert changes["model.roi_heads"] == ("CascadeROIHeads", "SamplingFreeCascadeROIHeads")
    for i, predictor in enumerate(node.model.roi_heads.box_predictors):
        assert predictor._target_ is SamplingFreeFastRCNNOutputLayers
        assert predictor.test_score_thresh == 0.001
        assert predictor.loss_weight == {"loss_cls": 1.0, "loss_box_reg": 0.25}
        assert f"model.roi_heads.box_predictors.{i}.loss_weight" in changes


YAML_EXPECTED = {
    "COCO-Detection/retinanet_R_50_FPN_1x.yaml": {
        "MODEL.META_ARCHITECTURE": ("RetinaNet", "SamplingFreeRetinaNet"),
        "MODEL.RETINANET.FOCAL_LOSS_ALPHA": ("0.25", "(unused)"),
        "MODEL.RETINANET.FOCAL_LOSS_GAMMA": ("2.0", "(unused)"),
        "MODEL.RETINANET.SCORE_THRESH_TEST": ("0.05", "0.001"),
    },
    "COCO-Detection/rpn_R_50_FPN_1x.yaml": {
        "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN", "SamplingFreeRPN"),
        "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": ("1.0", "0.25"),
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE": ("256", "(unused)"),
        "MODEL.RPN.POSITIVE_FRACTION": ("0.5", "(unused)"),
    },
    "COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml": {
        "MODEL.ROI_HEADS.NAME": ("StandardROIHeads", "SamplingFreeStandardROIHeads"),
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": ("1.0", "0.25"),
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": ("512", "(unused)"),
        "MODEL.ROI_HEADS.POSITIVE_FRACTION": ("0.25", "(unused)"),
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": ("0.05", "0.001"),
    },
}


@pytest.mark.parametrize("name", YAML_EXPECTED)
def test_the_changes_of_yaml_configs_are_these(name, capsys):
    assert converted(stock(name), capsys)[1] == YAML_EXPECTED[name]


@pytest.mark.parametrize("name", [*YAML_EXPECTED, "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml"])
@pytest.mark.parametrize("prior", [None, 0.01])
def test_it_is_said_whether_the_prior_will_be_measured(name, prior, capsys):
    cfg = get_cfg()
    add_sampling_free_config(cfg)
    cfg.merge_from_file(str(ROOT / name))
    cfg.MODEL.SAMPLING_FREE.PRIOR = prior
    convert(cfg)
    has_head = "fast_rcnn" not in name
    assert (MEASURED in capsys.readouterr().out) == (has_head and prior is None)


@pytest.mark.parametrize("name", [MASK_FPN, "COCO-Detection/retinanet_R_50_FPN_1x.yaml"])
def test_quiet_prints_nothing_and_gives_the_same(name, capsys):
    quiet, _ = converted(stock(name), capsys, quiet=True)
    loud, changes = converted(stock(name), capsys)
    assert differing(quiet, loud) == set() and changes


@pytest.mark.parametrize("name", FAMILIES)
def test_a_whole_config_and_its_model_node_give_the_same_model(name):
    cfg = stock(name)
    whole, node = convert(cfg, quiet=True).model, convert(cfg.model, quiet=True)
    assert differing(whole, node) == set()
    assert differing(cfg, stock(name)) == set()
    a, b = small(whole), small(node)
    assert type(a) is type(b) and classes_of(a) == classes_of(b)
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_references_still_resolve_after_the_conversion(name, whole):
    cfg = stock(name)
    node = convert(cfg, quiet=True).model if whole else convert(cfg.model, quiet=True)
    if "roi_heads" in node:
        node.roi_heads.num_classes = 7
        predictors = node.roi_heads.get("box_predictors") or [node.roi_heads.box_predictor]
        assert [p.num_classes for p in predictors] == [7] * len(predictors)
        assert node.roi_heads.mask_head.num_classes == 7
    else:
        node.num_classes = 7
        assert node.head.num_classes == 7
    assert differing(cfg, stock(name)) == set()


def test_references_beyond_the_model_node_resolve_too():
    cfg = stock(RETINANET)
    cfg.classes = 6
    cfg.model.num_classes = "${classes}"
    assert convert(cfg.model, quiet=True).head.num_classes == 6
    assert convert(cfg, quiet=True).model.head.num_classes == 6


def test_an_argument_stays_also_where_its_model_refers_to_parts_beside_it():
    cfg = stock(MASK_FPN)
    cfg.predictor = copy.deepcopy(cfg.model.roi_heads.box_predictor)
    cfg.predictor.num_classes = 80
    cfg.model.roi_heads.box_predictor = "${predictor}"
    before = copy.deepcopy(cfg)
    whole = convert(cfg, quiet=True)
    assert differing(cfg, before) == set()
    assert whole.predictor._target_ is SamplingFreeFastRCNNOutputLayers
    node = convert(cfg.model, quiet=True)
    assert node.roi_heads.box_predictor._target_ is SamplingFreeFastRCNNOutputLayers
    assert differing(cfg, before) == set()


def test_a_model_node_without_a_config_around_it():
    node = OmegaConf.create(
        OmegaConf.to_container(stock(RETINANET).model), flags={"allow_objects": True}
    )
    model = small(convert(node, quiet=True))
    assert type(model) is SamplingFreeRetinaNet and model.num_classes == 80


# The user's own parts --------------------------------------------------------------------------


class OwnRCNN(GeneralizedRCNN):
    pass


def test_own_backbone_head_sizes_and_class_count_of_a_retinanet():
    cfg = stock(RETINANET)
    cfg.model.backbone = L(tiny_fpn)()
    cfg.model.head.input_shape = [ShapeSpec(channels=8)] * 5
    cfg.model.head.conv_dims = [12]
    cfg.model.num_classes = 4
    cfg.model.test_score_thresh = 1e-4  # lower already
    cfg.model.prior = 0.02
    model = instantiate(convert(cfg, quiet=True).model)
    assert type(model) is SamplingFreeRetinaNet and model.num_classes == 4
    assert type(model.backbone) is type(tiny_fpn())
    assert model.head.cls_score.weight.shape == (9 * 4, 12, 3, 3)
    assert model.test_score_thresh == 1e-4 and model.prior == 0.02
    check_guides({**training_step(model, inputs_of(4)), "dense": 0})


def test_own_sizes_weights_and_subclass_of_an_rcnn():
    cfg = stock(MASK_FPN)
    node = cfg.model
    node._target_ = OwnRCNN
    node.roi_heads.num_classes = 2
    node.roi_heads.box_head.fc_dims = [24]
    node.roi_heads.box_predictor.input_shape = ShapeSpec(channels=24)
    node.roi_heads.box_predictor.loss_weight = {"loss_cls": 1.0, "loss_box_reg": 2.0}
    node.proposal_generator.loss_weight = 3.0
    node.proposal_generator.box_reg_loss_type = "giou"
    node.roi_heads.box_predictor.smooth_l1_beta = 0.5
    result = convert(cfg, quiet=True).model
    assert result._target_ is OwnRCNN
    # GIoU has no coordinates to average: times the positive fraction.
    assert result.proposal_generator.loss_weight == {"loss_rpn_cls": 3.0, "loss_rpn_loc": 1.5}
    predictor = result.roi_heads.box_predictor
    assert predictor.loss_weight == {"loss_cls": 1.0, "loss_box_reg": 0.5}
    assert predictor.smooth_l1_beta == 0.5 and predictor.num_classes == 2
    assert result.roi_heads.box_head.fc_dims == [24]


def test_a_weight_for_both_losses_is_lowered_for_the_box_loss_alone():
    node = stock(MASK_FPN).model
    node.proposal_generator.loss_weight = 2.0
    result = convert(node, quiet=True)
    assert result.proposal_generator.loss_weight == {"loss_rpn_cls": 2.0, "loss_rpn_loc": 0.5}


def test_what_is_sampling_free_already_stays(capsys):
    cfg = convert(stock(MASK_FPN), quiet=True)
    cfg.model.proposal_generator.prior = 0.004
    cfg.model.proposal_generator.loss_weight = {"loss_rpn_loc": 0.125}
    cfg.model.roi_heads.box_predictor.loss_weight = {"loss_cls": 1.0, "loss_box_reg": 1.0}
    cfg.model.roi_heads.box_predictor.guide = 1.0
    result, changes = converted(cfg, capsys)
    assert changes == {} and differing(cfg, result) == set()


def test_a_model_without_proposal_generator_and_one_without_roi_heads():
    node = stock(MASK_FPN).model
    node.proposal_generator = None
    result = convert(node, quiet=True)
    assert result.proposal_generator is None
    assert result.roi_heads._target_ is SamplingFreeStandardROIHeads
    node = stock(MASK_FPN).model
    node._target_ = ProposalNetwork
    del node["roi_heads"], node["input_format"]
    model = small(convert(node, quiet=True))
    assert type(model) is ProposalNetwork
    values = check_step(model, 80)
    assert set(values) == {"loss_rpn_cls", "loss_rpn_loc"}


class MyRetinaNet(SamplingFreeRetinaNet):
    pass


class MyRPN(SamplingFreeRPN):
    pass


class MyHeads(SamplingFreeStandardROIHeads):
    pass


class MyPredictor(SamplingFreeFastRCNNOutputLayers):
    pass


@pytest.mark.parametrize(
    "name, key, cls",
    [
        (RETINANET, "model", MyRetinaNet),
        (MASK_FPN, "model.proposal_generator", MyRPN),
        (MASK_FPN, "model.roi_heads", MyHeads),
        (MASK_FPN, "model.roi_heads.box_predictor", MyPredictor),
    ],
)
def test_what_is_derived_from_a_sampling_free_class_stays(name, key, cls):
    cfg = stock(name)
    OmegaConf.select(cfg, key)._target_ = cls
    result = convert(cfg, quiet=True)
    assert OmegaConf.select(result, key)._target_ is cls


def test_a_node_of_the_users_own_that_is_called_fcos_stays():
    cfg = get_cfg()
    cfg.MODEL.FCOS = CfgNode({"THRESH": 0.5})
    cfg.merge_from_file(str(ROOT / "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    assert convert(cfg, quiet=True).MODEL.FCOS.THRESH == 0.5


# Names instead of classes, as a saved config has them ------------------------------------------


def name_of(cls):
    return f"{cls.__module__}.{cls.__name__}"


def with_names(node):
    """Replaces classes by their names, in place."""
    for key in node:
        if OmegaConf.is_interpolation(node, key):
            continue
        value = node[key]
        if isinstance(value, DictConfig):
            with_names(value)
        elif isinstance(value, ListConfig):
            [with_names(x) for x in value if isinstance(x, DictConfig)]
        elif key == "_target_" and isinstance(value, type):
            node[key] = name_of(value)


@pytest.mark.parametrize("name", FAMILIES)
def test_targets_given_as_names_are_converted_as_classes_are(name):
    cfg = stock(name)
    expected = convert(cfg, quiet=True).model
    with_names(cfg.model)
    assert isinstance(cfg.model._target_, str)
    result = convert(cfg, quiet=True).model
    a, b = small(result), small(expected)
    assert classes_of(a) == classes_of(b) and type(a) is type(b)
    again = convert(result, quiet=True)
    assert differing(result, again) == set()


@pytest.mark.parametrize("name", [RETINANET, MASK_FPN, MASK_C4])
def test_a_converted_config_that_is_saved_and_loaded_again_works(name, tmp_path, capsys):
    cfg = convert(stock(name), quiet=True)
    shrink(cfg.model)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    loaded = LazyConfig.load(str(tmp_path / "config.yaml"))
    result, changes = converted(loaded, capsys)
    assert changes == {}
    set_prior(result.model), set_prior(cfg.model)
    a, b = instantiate(result.model), instantiate(cfg.model)
    b.load_state_dict(a.state_dict())  # the file has its keys in another order
    assert type(a) is type(b) and classes_of(a) == classes_of(b)
    assert training_step(a, inputs_of(80)) == training_step(b, inputs_of(80))


# Frozen and repeated YAML configs --------------------------------------------------------------


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_cfg_node_stays_frozen(frozen):
    cfg = stock("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    if frozen:
        cfg.freeze()
    else:
        cfg.defrost()
    result = convert(cfg, quiet=True)
    assert cfg.is_frozen() == result.is_frozen() == frozen
    assert result.MODEL.is_frozen() == result.MODEL.SAMPLING_FREE.is_frozen() == frozen
    assert "SAMPLING_FREE" not in cfg.MODEL


def test_a_second_conversion_scales_no_weight_again():
    cfg = stock("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT = 2.0
    once = convert(cfg, quiet=True)
    twice = convert(once, quiet=True)
    for node in (once.MODEL, twice.MODEL):
        assert node.RPN.BBOX_REG_LOSS_WEIGHT == 0.5
        assert node.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT == 0.25
    assert once == twice


def test_settings_of_this_project_in_a_cfg_node_stay():
    cfg = get_cfg()
    add_sampling_free_config(cfg)
    cfg.merge_from_file(str(ROOT / "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    cfg.MODEL.SAMPLING_FREE.PRIOR = 0.003
    cfg.MODEL.SAMPLING_FREE.GUIDE = 1.0
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1e-5
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE = "giou"
    cfg.USERS_OWN = CfgNode({"KEY": 1})
    result = convert(cfg, quiet=True)
    assert result.MODEL.SAMPLING_FREE == cfg.MODEL.SAMPLING_FREE
    assert result.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 1e-5
    assert result.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT == 0.25  # the positive fraction
    assert result.MODEL.RPN.BBOX_REG_LOSS_WEIGHT == 0.25
    assert result.USERS_OWN.KEY == 1


def test_lazy_and_yaml_conversions_give_equal_losses():
    # The same detector by both ways, with the same weights on the same batch.
    lazy = convert(stock("common/models/mask_rcnn_fpn.py").model, quiet=True)
    del lazy.roi_heads["mask_head"], lazy.roi_heads["mask_pooler"]
    del lazy.roi_heads["mask_in_features"]
    lazy.proposal_generator.pre_nms_topk = lazy.proposal_generator.post_nms_topk = (40, 40)
    lazy.proposal_generator.prior = PRIOR
    lazy.backbone.bottom_up.freeze_at = 2
    cfg = convert(stock("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"), quiet=True)
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.SAMPLING_FREE.PRIOR = PRIOR
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 40
    with torch.device("meta"):
        shapes = [
            {k: v.shape for k, v in m.state_dict().items()}
            for m in (instantiate(lazy), build_model_on_meta(cfg))
        ]
    assert shapes[0] == shapes[1]
    lazy.roi_heads.box_head.fc_dims = [16, 16]
    lazy.roi_heads.box_predictor.input_shape = ShapeSpec(channels=16)
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    a, b = instantiate(lazy), build_model(cfg)
    b.load_state_dict(a.state_dict())
    assert training_step(a, inputs_of(80)) == training_step(b, inputs_of(80))


def build_model_on_meta(cfg):
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    return build_model(cfg)


# Refusals --------------------------------------------------------------------------------------


class OwnRPN(RPN):
    def _subsample_labels(self, label):
        return label


class OwnHeads(StandardROIHeads):
    def _sample_proposals(self, matched_idxs, matched_labels, gt_classes):
        return super()._sample_proposals(matched_idxs, matched_labels, gt_classes)


class RenamedHeads(StandardROIHeads):
    pass


class OwnPredictor(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()


class OwnRetinaNet(RetinaNet):
    def losses(self, *args):
        return {}


class OwnFCOS(FCOS):
    def label_anchors(self, *args):
        return super().label_anchors(*args)


class NoBiasHead(RetinaNetHead):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.cls_score.bias = None


class OtherNamesHead(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()


class NoBiasRPNHead(StandardRPNHead):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.objectness_logits = nn.Conv2d(8, 3, 1, bias=False)


class BiasHead(RetinaNetHead):
    """The user's own, with a bias: convertible."""


class Detector(nn.Module):
    pass


def set_target(key, target):
    def change(cfg):
        OmegaConf.select(cfg, key)._target_ = target

    return change


def set_value(key, value):
    def change(cfg):
        OmegaConf.update(cfg, key, value, merge=False)

    return change


def refusal(cfg, capsys):
    """The line; nothing is printed and the argument stays."""
    before = copy.deepcopy(cfg)
    capsys.readouterr()
    with pytest.raises(BadInput) as e:
        convert(cfg)
    assert capsys.readouterr() == ("", "")
    line = str(e.value)
    assert len(line.splitlines()) == 1
    if isinstance(cfg, (CfgNode, DictConfig)):
        assert differing(cfg, before) == set()
    return line


REFUSALS = [
    (MASK_FPN, set_target("model.proposal_generator", OwnRPN),
     ["model.proposal_generator._target_", "OwnRPN", "_subsample_labels", "SamplingFreeRPN"]),
    (MASK_FPN, set_target("model.roi_heads", OwnHeads),
     ["model.roi_heads._target_", "OwnHeads", "_sample_proposals", "SamplingFreeStandardROIHeads"]),
    (MASK_FPN, set_target("model.roi_heads", RenamedHeads), ["model.roi_heads", "RenamedHeads"]),
    (MASK_FPN, set_target("model.roi_heads.box_predictor", OwnPredictor),
     ["model.roi_heads.box_predictor._target_", "OwnPredictor", "FastRCNNOutputLayers"]),
    (CASCADE, set_target("model.roi_heads.box_predictors[2]", OwnPredictor),
     ["model.roi_heads.box_predictors[2]._target_", "OwnPredictor"]),
    (RETINANET, set_target("model", OwnRetinaNet),
     ["model._target_", "OwnRetinaNet", "its own losses", "SamplingFreeRetinaNet"]),
    (FCOS_CONFIG, set_target("model", OwnFCOS), ["OwnFCOS", "label_anchors", "SamplingFreeFCOS"]),
    (RETINANET, set_target("model.head", NoBiasHead),
     ["model.head is", "NoBiasHead", "cls_score.bias"]),
    (RETINANET, set_target("model.head", OtherNamesHead),
     ["model.head is", "OtherNamesHead", "cls_score.bias"]),
    (MASK_FPN, set_target("model.proposal_generator.head", NoBiasRPNHead),
     ["model.proposal_generator.head is", "NoBiasRPNHead", "objectness_logits.bias"]),
    (RETINANET, set_target("model", Detector), ["model._target_", "Detector", "RetinaNet", "FCOS",
     "GeneralizedRCNN", "PanopticFPN", "ProposalNetwork"]),
    (RETINANET, set_target("model", "torch.nn.modules.linear.Linear"), ["Linear"]),
    (RETINANET, set_target("model", instantiate), ["model._target_", "instantiate"]),
    (RETINANET, set_value("model", {"backbone": 1}), ["model", "no call"]),
    (RETINANET, set_value("model", 3), ["model", "int", "no call"]),
    (RETINANET, set_value("model", [1]), ["model", "ListConfig", "no call"]),
    (RETINANET, set_value("model", None), ["model", "no call"]),
    (MASK_FPN, set_value("model.roi_heads", "heads"), ["model.roi_heads", "str", "no call"]),
    (MASK_FPN, set_value("model.roi_heads.box_predictor.use_fed_loss", True),
     ["model.roi_heads.box_predictor.use_fed_loss = True"]),
    (CASCADE, set_value("model.roi_heads.box_predictors[1].use_fed_loss", True),
     ["model.roi_heads.box_predictors[1].use_fed_loss = True"]),
]  # fmt: skip


@pytest.mark.parametrize("name, change, parts", REFUSALS, ids=range(len(REFUSALS)))
def test_what_cannot_be_converted_is_named_in_one_line(name, change, parts, capsys):
    cfg = stock(name)
    change(cfg)
    line = refusal(cfg, capsys)
    assert all(part in line for part in parts), line


class FailingHead(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        raise ValueError("two\nlines")


@pytest.mark.parametrize(
    "change, part",
    [
        (set_target("model", "no.such.Detector"), "no.such.Detector"),
        (set_target("model.head", FailingHead), "model.head"),
        (lambda cfg: cfg.model.pop("head"), "model.head"),
        (set_value("model.head", "???"), "model.head"),
    ],
    ids=range(4),
)
def test_what_cannot_even_be_built_is_named_in_one_line(change, part, capsys):
    cfg = stock(RETINANET)
    change(cfg)
    assert part in refusal(cfg, capsys)


def test_a_whole_number_for_the_loss_weight():
    node = stock(MASK_FPN).model
    node.proposal_generator.loss_weight = 2
    result = convert(node, quiet=True)
    assert result.proposal_generator.loss_weight == {"loss_rpn_cls": 2, "loss_rpn_loc": 0.5}


def test_a_read_only_lazy_config_is_converted_as_a_frozen_cfg_node_is():
    cfg = stock(RETINANET)
    OmegaConf.set_readonly(cfg, True)
    assert convert(cfg, quiet=True).model._target_ is SamplingFreeRetinaNet


@pytest.mark.parametrize("kind", NOT_CONVERTIBLE)
def test_the_models_of_other_frameworks_are_refused(kind, capsys):
    try:
        cfg = LazyConfig.load(str(ROOT / kind))
    except ImportError as e:  # mmdet's wrapper, on some versions
        pytest.skip(str(e))
    line = refusal(cfg, capsys)
    assert NOT_CONVERTIBLE[kind] in line and line.startswith("model._target_ = ")


def test_a_bias_is_all_that_a_head_of_ones_own_needs():
    cfg = stock(RETINANET)
    cfg.model.head._target_ = BiasHead
    assert convert(cfg, quiet=True).model.head._target_ is BiasHead
    cfg.model.head = instantiate(stock(RETINANET).model.head)  # an object in place of a call
    assert convert(cfg, quiet=True).model._target_ is SamplingFreeRetinaNet
    cfg.model.head = NoBiasHead(
        input_shape=[ShapeSpec(channels=8)], num_classes=2, num_anchors=1, conv_dims=[8]
    )
    with pytest.raises(BadInput, match="NoBiasHead.*cls_score.bias"):
        convert(cfg)


FASTER = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"


@pytest.mark.parametrize(
    "pairs, parts",
    [
        (["MODEL.META_ARCHITECTURE", "SemanticSegmentor"],
         ["MODEL.META_ARCHITECTURE = SemanticSegmentor", "RetinaNet", "GeneralizedRCNN"]),
        (["MODEL.META_ARCHITECTURE", "OwnRCNN"], ["MODEL.META_ARCHITECTURE = OwnRCNN"]),
        (["MODEL.ROI_HEADS.NAME", "PointRendROIHeads"],
         ["MODEL.ROI_HEADS.NAME = PointRendROIHeads", "StandardROIHeads", "Res5ROIHeads"]),
        (["MODEL.ROI_HEADS.NAME", "RROIHeads"], ["MODEL.ROI_HEADS.NAME = RROIHeads"]),
        (["MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"],
         ["MODEL.PROPOSAL_GENERATOR.NAME = RRPN", "RPN"]),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_in_a_yaml_config_is_named(pairs, parts, capsys):
    cfg = stock(FASTER)
    cfg.merge_from_list(pairs)
    line = refusal(cfg, capsys)
    assert all(part in line for part in parts), line


def test_federated_loss_in_a_yaml_config_is_refused(capsys):
    cfg = stock(FASTER)
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = True  # v0.6 does not have the key
    assert "MODEL.ROI_BOX_HEAD.USE_FED_LOSS = True" in refusal(cfg, capsys)


def test_the_semantic_segmentation_of_the_zoo_is_refused(capsys):
    assert "SemanticSegmentor" in refusal(stock("Misc/semantic_R_50_FPN_1x.yaml"), capsys)


@pytest.mark.parametrize("value", [{"model": 1}, None, 3, "config.py", [1]])
def test_arguments_that_are_no_config_are_refused(value, capsys):
    line = refusal(value, capsys)
    assert type(value).__name__ in line and "LazyConfig" in line and "CfgNode" in line


def test_a_config_without_a_model_and_a_list_are_refused(capsys):
    assert "DictConfig" in refusal(OmegaConf.create({"train": {}}), capsys)
    assert "ListConfig" in refusal(OmegaConf.create([1]), capsys)
