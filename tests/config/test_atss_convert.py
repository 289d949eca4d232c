"""What convert() makes of ATSS and PAA, in LazyConfigs and in YAML."""

import copy

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from omegaconf import OmegaConf

from helpers.tiny_points import points_cfg
from sampling_free import ATSS, PAA, BadInput, SamplingFreeATSS, SamplingFreePAA, convert

PAIRS = [(ATSS, SamplingFreeATSS), (PAA, SamplingFreePAA)]


def _lazy(cls, **kwargs):
    """Detectron2's FCOS config with another class, as a user writes it."""
    node = model_zoo.get_config("common/models/fcos.py").model
    node._target_ = cls
    OmegaConf.update(node, "test_score_thresh", 0.05)
    for key, value in kwargs.items():
        node[key] = value
    return node


def _changes(capsys, config):
    capsys.readouterr()
    result = convert(config)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "Made sampling-free:"
    return result, [x.strip() for x in lines]


@pytest.mark.parametrize(("focal", "ours"), PAIRS)
def test_a_lazy_config_becomes_the_sampling_free_one(focal, ours, capsys):
    node = _lazy(focal, focal_loss_alpha=0.25, focal_loss_gamma=2.0, topk=7)
    before = copy.deepcopy(node)
    result, lines = _changes(capsys, node)
    assert node == before
    assert result._target_ is ours and result.prior == "auto" and result.topk == 7
    assert "focal_loss_alpha" not in result and "focal_loss_gamma" not in result
    assert result.test_score_thresh == 0.001
    assert sorted(lines) == sorted(
        [
            f"model: {focal.__name__} -> {ours.__name__}",
            "model.focal_loss_alpha: 0.25 -> (dropped)",
            "model.focal_loss_gamma: 2.0 -> (dropped)",
            "model.prior: (none) -> auto",
            "model.test_score_thresh: 0.05 -> 0.001",
        ]
    )
    again, lines = _changes(capsys, result)
    assert again == result and lines == ["nothing left to change"]


@pytest.mark.parametrize(("focal", "ours"), PAIRS)
def test_a_converted_lazy_config_is_built(focal, ours):
    with torch.device("meta"):
        before = instantiate(_lazy(focal))
        model = instantiate(convert(_lazy(focal), quiet=True))
    assert type(before) is focal and type(model) is ours
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in before.state_dict().items()
    }


@pytest.mark.parametrize(("focal", "ours"), PAIRS)
def test_a_threshold_that_was_not_given_is_lowered_and_a_lower_one_stays(focal, ours):
    node = _lazy(focal)
    del node["test_score_thresh"]
    assert convert(node, quiet=True).test_score_thresh == 0.001
    assert convert(_lazy(focal, test_score_thresh=1e-5), quiet=True).test_score_thresh == 1e-5
    result = convert(_lazy(ours, test_score_thresh="per_class", prior=0.02), quiet=True)
    assert (result._target_, result.test_score_thresh, result.prior) == (ours, "per_class", 0.02)


@pytest.mark.parametrize(("focal", "ours"), PAIRS)
def test_a_changed_copy_of_a_node_is_what_is_converted(focal, ours):
    # OmegaConf's copy of a node still has the whole config for its parent.
    node = copy.deepcopy(model_zoo.get_config("common/models/fcos.py").model)
    node._target_, node.num_classes = focal, 4
    result = convert(node, quiet=True)
    assert result._target_ is ours and result.num_classes == 4
    assert result.head.num_classes == 4
    assert node._target_ is focal and "prior" not in node


@pytest.mark.parametrize(("focal", "ours"), PAIRS)
def test_a_cfg_node_becomes_the_sampling_free_one(focal, ours, capsys):
    name, own = focal.__name__, ours.__name__
    cfg = points_cfg(name, f"MODEL.SAMPLING_FREE.{name}.TOPK", 7)
    before = cfg.clone()
    result, lines = _changes(capsys, cfg)
    assert cfg == before and isinstance(result, CfgNode)
    key = f"MODEL.SAMPLING_FREE.{name}.SCORE_THRESH_TEST"
    assert sorted(lines) == sorted(
        [
            f"MODEL.META_ARCHITECTURE: {name} -> {own}",
            "MODEL.RETINANET.FOCAL_LOSS_ALPHA: 0.25 -> (unused)",
            "MODEL.RETINANET.FOCAL_LOSS_GAMMA: 2.0 -> (unused)",
            f"{key}: None -> 0.001",
            "MODEL.SAMPLING_FREE.PRIOR: None, measured before the first iteration",
        ]
    )
    model = build_model(result)
    assert type(model) is ours and model.test_score_thresh == 0.001 and model.topk == 7
    # The node of the other detector, and Detectron2's own threshold, stay.
    expected = before.clone()
    expected.MODEL.META_ARCHITECTURE = own
    expected.merge_from_list([key, 0.001])
    assert result == expected
    again, lines = _changes(capsys, result)
    assert again == result and lines == ["nothing left to change"]


@pytest.mark.parametrize("name", ["ATSS", "PAA"])
def test_a_lower_threshold_of_a_cfg_node_stays(name):
    cfg = points_cfg(name, f"MODEL.SAMPLING_FREE.{name}.SCORE_THRESH_TEST", 1e-5)
    result = convert(cfg, quiet=True)
    assert result.MODEL.SAMPLING_FREE[name].SCORE_THRESH_TEST == 1e-5


class OwnATSS(ATSS):
    def label_anchors(self, *args):
        return super().label_anchors(*args)


class OwnPAA(PAA):
    def refine(self, *args):
        return super().refine(*args)


class OwnSamplingFreeATSS(SamplingFreeATSS):
    pass


@pytest.mark.parametrize(
    ("cls", "parts"),
    [
        (OwnATSS, ["OwnATSS", "label_anchors", "sampling_free.SamplingFreeATSS"]),
        (OwnPAA, ["OwnPAA", "refine", "sampling_free.SamplingFreePAA"]),
    ],
)
def test_a_subclass_of_ones_own_is_refused_with_what_to_derive_it_from(cls, parts):
    with pytest.raises(BadInput) as e:
        convert(_lazy(cls), quiet=True)
    line = str(e.value)
    assert len(line.splitlines()) == 1 and all(x in line for x in parts), line


def test_a_subclass_of_a_sampling_free_one_stays():
    result = convert(_lazy(OwnSamplingFreeATSS, prior=0.01), quiet=True)
    assert result._target_ is OwnSamplingFreeATSS and result.test_score_thresh == 0.001


def test_a_subclass_in_a_cfg_node_is_refused_with_those_known():
    with pytest.raises(BadInput, match="MODEL.META_ARCHITECTURE = OwnATSS.*known: .*ATSS"):
        convert(points_cfg("OwnATSS"), quiet=True)
