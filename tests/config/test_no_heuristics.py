"""A sampling-free config has none of the hyperparameters of the known heuristics."""

import pytest
from omegaconf import DictConfig, ListConfig

from helpers.config_files import BASELINES, SAMPLING_FREE, cases, config
from sampling_free import convert
from sampling_free.config.families import BASELINES as REMEDIES
from sampling_free.config.families import DENSE, PROPOSALS, ROI_HEADS, STOCK
from sampling_free.config.zoo import model_zoo
from sampling_free.utils.lazy import target_of

FOCAL, SAMPLING, MINING, FIXED_PRIOR = "focal loss", "sampling", "OHEM or GHM", "fixed prior"
ZOO = [
    "COCO-Detection/retinanet_R_50_FPN_1x.py",
    "COCO-Detection/fcos_R_50_FPN_1x.py",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py",
]


def calls(node):
    """All nodes with a target, this one first."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield node
        children = [node[key] for key in node]
    else:
        children = list(node) if isinstance(node, ListConfig) else []
    for child in children:
        yield from calls(child)


def heuristics(model):
    """Names of the heuristics that act in a model node."""
    for node in calls(model):
        cls = target_of(node)
        if cls in REMEDIES:
            yield MINING
        elif cls in DENSE:
            yield FOCAL
        elif cls in PROPOSALS or cls in ROI_HEADS:
            yield SAMPLING
        elif cls in STOCK and isinstance(node.get("prior", "auto"), float):
            yield FIXED_PRIOR


@cases(SAMPLING_FREE)
def test_a_sampling_free_config_has_none(path):
    assert list(heuristics(config(path).model)) == []


@cases(BASELINES)
def test_a_baseline_has_its_own(path):
    assert set(heuristics(config(path).model)) == {SAMPLING if "rcnn" in path.name else FOCAL}


@pytest.mark.parametrize("name", ZOO)
def test_the_conversion_takes_those_of_detectron2_away(name):
    model = model_zoo.get_config(name).model
    assert set(heuristics(model)) in ({FOCAL}, {SAMPLING})
    converted = convert(model, quiet=True)
    assert list(heuristics(converted)) == []
    dense = converted if "prior" in converted else converted.proposal_generator
    dense.prior = 0.01
    assert list(heuristics(converted)) == [FIXED_PRIOR]
