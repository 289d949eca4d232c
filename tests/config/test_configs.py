"""Every config of the repository: it loads, builds its model, and says how it is trained."""

import ast
import copy
import json
import re
import shlex

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from omegaconf import OmegaConf

from helpers.config_files import BASELINES, FOLDER, SAMPLING_FREE, SUFFIX, WHOLE, cases, config
from helpers.tiny_run import REPO
from sampling_free.data.datasets import num_classes_of
from sampling_free.data.loader import build_replayable_train_loader

AUTHORS = [p for p in WHOLE if "_authors" in p.stem or p.parent.name == "voc"]
COCO_1X = [p for p in WHOLE if p.stem.split("_FPN_")[-1].startswith("1x")]
RESULTS = {
    "retinanet": "bccd",
    "fcos": "bccd_fcos",
    "atss": "bccd_atss",
    "faster_rcnn": "bccd_faster_rcnn",
}
DENSE = {"retinanet": "RetinaNet", "fcos": "FCOS", "atss": "ATSS", "paa": "PAA"}
# What only one side has: without it a stock node and its sampling-free twin are the same.
OWN_KEYS = (
    "_target_ prior guide box_reg_loss_weight box_weight loss_weight focal_loss_alpha "
    "focal_loss_gamma batch_size_per_image positive_fraction"
).split()


def twin(path):
    """The sampling-free config of a baseline."""
    return path.with_name(SUFFIX.sub("", path.stem) + ".py")


def parts(model):
    """The nodes of a model that are of another class without sampling."""
    if "roi_heads" not in model:
        return [model]
    heads = model.roi_heads
    predictors = heads.box_predictors if "box_predictors" in heads else [heads.box_predictor]
    return [model.proposal_generator, heads, *predictors]


def stripped(model):
    """A copy of a model node without what only one of the two sides has."""
    model = copy.deepcopy(model)
    for node in parts(model):
        for key in OWN_KEYS:
            node.pop(key, None)
    return OmegaConf.to_container(model, resolve=True)


def without_weights(node):
    """Instantiates a model on the meta device: shapes only, so that R101 takes no time."""
    with torch.device("meta"):
        return instantiate(node)


def shapes(model):
    return {k: tuple(v.shape) for k, v in model.state_dict().items()}


def test_all_configs_are_counted():
    assert len(WHOLE) == 63
    assert len(BASELINES) == 28 and len(AUTHORS) == 24 and len(COCO_1X) == 40
    assert all(twin(p) in SAMPLING_FREE for p in BASELINES)


@cases(WHOLE)
def test_it_has_a_command_and_builds_its_model_optimizer_and_schedule(path):
    header = ast.get_docstring(ast.parse(path.read_text()))
    found = re.search(r"Command:\s+((?:.*\\\n)*.*)", header).group(1)
    if "(or: " in found:
        found = re.search(r"\(or: (.*)\)", found).group(1)
    words = shlex.split(found)
    assert words[:2] == ["python", "train_net.py"] and "Hardware:" in header
    assert words[words.index("--config-file") + 1] == str(path.relative_to(REPO))
    cfg = config(path)
    cfg.train.seed = 11
    assert cfg.dataloader.train._target_ is build_replayable_train_loader
    assert cfg.dataloader.train.seed == 11
    model = without_weights(cfg.model)
    if "R_18" in path.name or path.parent.name == "demo":  # starts from random weights
        assert cfg.train.init_checkpoint == ""
        assert not [m for m in model.modules() if "Frozen" in type(m).__name__]
    prefix = "" if path in BASELINES else "SamplingFree"
    dense, *heads = (x._target_.__name__ for x in parts(cfg.model))
    if heads:
        kind = "Cascade" if "cascade" in path.name else "Standard"
        expected = ["RPN", f"{kind}ROIHeads", *["FastRCNNOutputLayers"] * (len(heads) - 1)]
        assert model.roi_heads.mask_on == ("mask" in path.name)
    else:
        expected = [next(v for k, v in DENSE.items() if path.stem.startswith(k))]
    assert [dense, *heads] == [prefix + name for name in expected]
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == trained > 0
    multiplier = instantiate(cfg.lr_multiplier)
    start, middle, end = (multiplier(x) for x in (0.0, 0.5, 1 - 1 / cfg.train.max_iter))
    assert start < middle and 0 < end <= 0.1 * middle


def test_no_two_configs_write_to_one_folder():
    folders = [config(p).train.output_dir for p in WHOLE]
    assert len(set(folders)) == len(WHOLE) and all(f.startswith("output/") for f in folders)


@cases([p for p in SAMPLING_FREE if not p.stem.endswith("_bce")])
def test_the_method_has_the_default_guide_or_the_papers(path):
    dense, *heads = parts(config(path).model)
    assert dense.prior == "auto"
    is_papers = path.parent.name == "voc" or "_authors" in path.stem
    for node in (dense, *heads[1:]):
        assert node.get("guide") == ("iteration" if is_papers else None)
    for node in heads[1:] or [dense]:
        assert node.test_score_thresh == (0.0316 if "fcos" in path.name else 0.001)
    if heads and not is_papers:  # box losses are means over the four coordinates
        assert dense.loss_weight == {"loss_rpn_cls": 1.0, "loss_rpn_loc": 0.25}
        assert all(p.loss_weight == {"loss_cls": 1.0, "loss_box_reg": 0.25} for p in heads[1:])


@cases(BASELINES)
def test_a_baseline_differs_from_its_twin_in_the_method_and_a_chosen_rate_only(path):
    base, ours = config(path), config(twin(path))
    suffix = SUFFIX.search(path.stem)[0]
    assert base.train.pop("output_dir") == ours.train.pop("output_dir") + suffix
    assert stripped(base.model) == stripped(ours.model)
    assert shapes(without_weights(base.pop("model"))) == shapes(without_weights(ours.pop("model")))
    if path.parent.name == "bccd":  # each variant has the rate that was best for it
        stem = next(x for x in RESULTS if path.stem.startswith(x))
        results = REPO / "results" / f"{RESULTS[stem]}.json"
        # Faster R-CNN is still to be measured: one rate for both sides.
        records = json.loads(results.read_text()) if stem != "faster_rcnn" else []
        for cfg, name in ((base, path.name), (ours, twin(path).name)):
            tried = [r for r in records if r["config"].endswith(name) and r["test_split"] == "val"]
            if records:
                best = max(tried, key=lambda r: r.get("bbox/AP", -1))["learning_rate"]
                assert cfg.optimizer.pop("lr") == best
    assert OmegaConf.to_container(base, resolve=True) == OmegaConf.to_container(ours, resolve=True)


@cases(BASELINES)
def test_a_baseline_has_what_detectron2_has(path):
    dense, *heads = parts(config(path).model)
    own = {k: node[k] for node in (dense, *heads) for k in OWN_KEYS[1:] if k in node}
    if not heads:
        assert own == {"focal_loss_alpha": 0.25, "focal_loss_gamma": 2.0}
        return
    assert set(own) == {"batch_size_per_image", "positive_fraction"}
    stock = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    for node, of_stock in ((dense, stock.proposal_generator), (heads[0], stock.roi_heads)):
        assert node.positive_fraction == of_stock.positive_fraction
        if "R_18" not in path.name:
            assert node.batch_size_per_image == of_stock.batch_size_per_image
    # There is something to sample from.
    assert heads[0].batch_size_per_image < dense.post_nms_topk[0]


@cases(AUTHORS)
def test_the_authors_recipe(path):
    cfg = config(path)
    dense, *heads = parts(cfg.model)
    ours = path not in BASELINES
    if heads:
        assert dense.smooth_l1_beta == pytest.approx(1 / 9)
        assert dense.get("loss_weight", None) == ({"loss_rpn_loc": 0.125} if ours else None)
        for predictor in heads[1:]:
            assert predictor.smooth_l1_beta == 1
            weight = predictor.get("loss_weight", None)
            assert weight == ({"loss_box_reg": 0.25} if ours else None)
    elif path.stem.startswith(("atss", "paa")):  # as published
        assert "box_loss_weight" not in dense and "anchor_size" not in dense
    elif "fcos" in path.name:
        assert dense.center_sampling_radius == float("inf")
        assert dense.get("box_weight", None) == ("centerness" if ours else None)
    else:
        assert dense.smooth_l1_beta == 0.11
        assert dense.get("box_reg_loss_weight", None) == (0.25 if ours else None)
    assert cfg.dataloader.train.mapper.augmentations[0].short_edge_length == [800]
    assert cfg.dataloader.train.mapper.augmentations[0].max_size == 1333
    assert cfg.dataloader.train.total_batch_size == 16
    model = without_weights(cfg.model)
    cfg.optimizer.params.model = model
    groups = instantiate(cfg.optimizer).param_groups
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    parameters = {k: settings[id(p)] for k, p in model.named_parameters() if p.requires_grad}
    norms = {  # Detectron2 does not decay normalization, of which FCOS has some
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.GroupNorm)
        for key, _ in module.named_parameters()
    }
    biases = {k for k in parameters if k.endswith("bias")}
    lr = 0.02 if heads else 0.01
    assert {parameters[k] for k in biases} == {(2 * lr, 0.0)}
    assert {parameters[k] for k in parameters.keys() - biases - norms} == {(lr, 1e-4)}


@cases(COCO_1X)
def test_coco_1x_is_detectron2s_schedule_and_backbone(path):
    cfg = config(path)
    assert cfg.train.max_iter == 90000
    assert cfg.optimizer.lr == (0.02 if "rcnn" in path.name else 0.01)
    depth = 101 if "R_101" in path.name else 50
    assert cfg.model.backbone.bottom_up.stages.depth == depth
    assert cfg.train.init_checkpoint.endswith(f"ImageNetPretrained/MSRA/R-{depth}.pkl")
    multiplier = instantiate(cfg.lr_multiplier)
    steps = [multiplier(i / 90000) for i in (59999, 60001, 79999, 80001)]
    assert steps == pytest.approx([1.0, 0.1, 0.1, 0.01])
    assert cfg.dataloader.train.dataset.names == "coco_2017_train"
    assert cfg.dataloader.test.dataset.names == "coco_2017_val"
    assert cfg.dataloader.train.mapper.use_instance_mask == ("mask" in path.name)
    scales = list(cfg.dataloader.train.mapper.augmentations[0].short_edge_length)
    assert scales == ([800] if path in AUTHORS else [640, 672, 704, 736, 768, 800])


def test_voc_retinanet_leaves_p3_out_and_decays_at_11000_of_14000():
    cfg = config(FOLDER / "voc" / "retinanet_R_50_FPN.py")
    model = without_weights(cfg.model)
    assert model.num_classes == 20 and cfg.train.max_iter == 14000
    assert list(model.head_in_features) == ["p4", "p5", "p6", "p7"]
    assert model.anchor_generator.strides == [16, 32, 64, 128]
    assert [min(s) for s in cfg.model.anchor_generator.sizes] == [64, 128, 256, 512]
    with torch.no_grad():
        features = instantiate(cfg.model.backbone)(torch.zeros(1, 3, 128, 128))
    assert {k: v.shape[-1] for k, v in features.items()} == {"p4": 8, "p5": 4, "p6": 2, "p7": 1}
    multiplier = instantiate(cfg.lr_multiplier)
    steps = [multiplier(i / 14000) for i in (0, 501, 10999, 11001)]
    assert steps == pytest.approx([1 / 3, 1, 1, 0.1])


def test_bccd_has_its_three_classes():
    for path in (p for p in WHOLE if p.parent.name == "bccd"):
        cfg = config(path)
        names = cfg.dataloader.train.dataset.names
        assert num_classes_of(cfg.model) == 3 and list(names.classes) == ["RBC", "WBC", "Platelets"]
