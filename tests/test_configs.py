"""Every config of the repository: it loads, builds its model, and says how it is trained."""

import ast
import copy
import functools
import json
import re
import shlex

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.meta_arch import RetinaNet
from omegaconf import OmegaConf
from tiny_run import REPO

from sampling_free import SamplingFreeRetinaNet
from sampling_free.config import load_config
from sampling_free.loader import build_replayable_train_loader

FOLDER = REPO / "configs"
WHOLE = sorted(p for p in FOLDER.rglob("*.py") if p.parent.name != "common")
FOCAL = [p for p in WHOLE if p.stem.endswith("_focal")]
SAMPLING_FREE = [p for p in WHOLE if p not in FOCAL]
AUTHORS = [p for p in WHOLE if "_authors" in p.stem or p.parent.name == "voc"]
COCO_1X = [p for p in WHOLE if p.parent.name == "retinanet"]


def name(path):
    return str(path.relative_to(FOLDER))


def cases(paths):
    return pytest.mark.parametrize("path", paths, ids=name)


@functools.lru_cache(None)
def _loaded(path):
    return load_config(str(path))


def config(path):
    """A copy of a config that a test may change."""
    return copy.deepcopy(_loaded(path))


def without_weights(node):
    """Instantiates a model on the meta device: shapes only, so that R101 takes no time."""
    with torch.device("meta"):
        return instantiate(node)


def shapes(model):
    return {k: tuple(v.shape) for k, v in model.state_dict().items()}


def test_all_configs_are_counted():
    assert len(WHOLE) == 13
    assert len(FOCAL) == 5 and len(AUTHORS) == 5 and len(COCO_1X) == 8


def test_every_part_in_common_is_used():
    texts = [p.read_text() for p in FOLDER.rglob("*.py")]
    parts = sorted(p.stem for p in (FOLDER / "common").glob("*.py"))
    unused = [p for p in parts if not any(re.search(rf"from \.+(common\.)?{p} ", t) for t in texts)]
    assert len(parts) == 7 and unused == []


@cases(WHOLE)
def test_the_header_names_the_command_with_its_own_path(path):
    header = ast.get_docstring(ast.parse(path.read_text()))
    found = re.search(r"Command:\s+((?:.*\\\n)*.*)", header).group(1)
    if "(or: " in found:
        found = re.search(r"\(or: (.*)\)", found).group(1)
    words = shlex.split(found)
    assert words[:2] == ["python", "train_net.py"]
    assert words[words.index("--config-file") + 1] == str(path.relative_to(REPO))
    assert "Hardware:" in header


@cases(WHOLE)
def test_it_builds_its_model_optimizer_and_schedule(path):
    cfg = config(path)
    model = without_weights(cfg.model)
    assert type(model) is (RetinaNet if path in FOCAL else SamplingFreeRetinaNet)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == trained > 0
    multiplier = instantiate(cfg.lr_multiplier)
    start, middle, end = (multiplier(x) for x in (0.0, 0.5, 1 - 1 / cfg.train.max_iter))
    assert start < middle and 0 < end <= 0.1 * middle


@cases(WHOLE)
def test_its_order_can_be_replayed_with_the_seed_of_the_run(path):
    cfg = config(path)
    cfg.train.seed = 11
    assert cfg.dataloader.train._target_ is build_replayable_train_loader
    assert cfg.dataloader.train.seed == 11


def test_no_two_configs_write_to_one_folder():
    folders = [config(p).train.output_dir for p in WHOLE]
    assert len(set(folders)) == len(WHOLE) and all(f.startswith("output/") for f in folders)


@cases(SAMPLING_FREE)
def test_a_sampling_free_model_has_the_parameters_of_detectron2s_class(path):
    cfg = config(path)
    model = without_weights(cfg.model)
    for key in ("prior", "guide", "box_reg_loss_weight"):
        del cfg.model[key]
    cfg.model._target_ = RetinaNet
    assert shapes(model) == shapes(without_weights(cfg.model))
    assert cfg.model.test_score_thresh == 0.001


@cases(SAMPLING_FREE)
def test_the_method_is_the_papers_unless_the_name_says_otherwise(path):
    model = config(path).model
    assert model.prior == "auto"
    assert model.guide == (1.0 if path.stem.endswith("_bce") else "iteration")


@cases(FOCAL)
def test_the_focal_baseline_differs_from_its_twin_in_the_loss_and_a_chosen_rate_only(path):
    focal, ours = config(path), config(path.with_name(path.name.replace("_focal", "")))
    assert focal.train.pop("output_dir") == ours.train.pop("output_dir") + "_focal"
    assert (focal.model.pop("focal_loss_alpha"), focal.model.pop("focal_loss_gamma")) == (0.25, 2)
    for key in ("prior", "guide", "box_reg_loss_weight", "_target_"):
        ours.model.pop(key)
    assert focal.model.pop("_target_") is RetinaNet
    if path.parent.name == "bccd":  # each variant has the rate that was best for it
        records = json.loads((REPO / "results" / "bccd.json").read_text())
        for cfg, name in ((focal, path.name), (ours, path.name.replace("_focal", ""))):
            tried = [r for r in records if r["config"].endswith(name) and r["test_split"] == "val"]
            best = max(tried, key=lambda r: r["bbox/AP"])["learning_rate"]
            assert cfg.optimizer.pop("lr") == best
    assert OmegaConf.to_container(focal, resolve=True) == OmegaConf.to_container(ours, resolve=True)


@cases(AUTHORS)
def test_the_authors_recipe(path):
    cfg = config(path)
    assert cfg.model.smooth_l1_beta == 0.11
    assert cfg.model.get("box_reg_loss_weight", None) == (None if path in FOCAL else 0.25)
    assert cfg.dataloader.train.mapper.augmentations[0].short_edge_length == [800]
    assert cfg.dataloader.train.mapper.augmentations[0].max_size == 1333
    assert cfg.dataloader.train.total_batch_size == 16
    model = without_weights(cfg.model)
    cfg.optimizer.params.model = model
    groups = instantiate(cfg.optimizer).param_groups
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    parameters = {k: settings[id(p)] for k, p in model.named_parameters() if p.requires_grad}
    biases = {k for k in parameters if k.endswith("bias")}
    assert {parameters[k] for k in biases} == {(0.02, 0.0)}
    assert {parameters[k] for k in parameters.keys() - biases} == {(0.01, 1e-4)}


@cases(COCO_1X)
def test_coco_1x_is_detectron2s_schedule_and_backbone(path):
    cfg = config(path)
    assert cfg.train.max_iter == 90000 and cfg.optimizer.lr == 0.01
    depth = 101 if "R_101" in path.name else 50
    assert cfg.model.backbone.bottom_up.stages.depth == depth
    assert cfg.train.init_checkpoint.endswith(f"ImageNetPretrained/MSRA/R-{depth}.pkl")
    multiplier = instantiate(cfg.lr_multiplier)
    steps = [multiplier(i / 90000) for i in (59999, 60001, 79999, 80001)]
    assert steps == pytest.approx([1.0, 0.1, 0.1, 0.01])
    assert cfg.dataloader.train.dataset.names == "coco_2017_train"
    assert cfg.dataloader.test.dataset.names == "coco_2017_val"
    scales = list(cfg.dataloader.train.mapper.augmentations[0].short_edge_length)
    assert scales == ([800] if path in AUTHORS else [640, 672, 704, 736, 768, 800])


def test_voc_leaves_p3_out_and_decays_at_11000_of_14000():
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
        assert cfg.model.num_classes == 3 and list(names.classes) == ["RBC", "WBC", "Platelets"]


@cases([p for p in WHOLE if "R_18" in p.name or p.parent.name == "demo"])
def test_what_starts_from_random_weights_has_no_frozen_normalisation(path):
    cfg = config(path)
    model = without_weights(cfg.model)
    assert cfg.train.init_checkpoint == ""
    assert not [m for m in model.modules() if "Frozen" in type(m).__name__]


def test_the_saved_form_of_a_config_is_the_config(tmp_path):
    cfg = config(FOLDER / "retinanet" / "retinanet_R_50_FPN_1x.py")
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    again = load_config(str(tmp_path / "config.yaml"))
    assert shapes(without_weights(again.model)) == shapes(without_weights(cfg.model))
