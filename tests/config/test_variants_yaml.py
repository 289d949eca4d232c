"""The variants of YAML configs, from the command line and in training."""

import runpy
import sys

import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.modeling import build_model

from helpers.small_zoo import MASK_FPN, RETINANET, ROOT, differing, stock
from helpers.tiny_run import REPO, load, only_error, run, run_until, same, write_config
from helpers.variants_cases import METHOD, message, tiny, varied
from sampling_free import VARIANTS, GHMRetinaNet, OHEMStandardROIHeads, add_sampling_free_config
from sampling_free.config.load import load_config

FASTER_YAML = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
RETINANET_YAML = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"


YAML_EXPECTED = {
    RETINANET_YAML: {
        **dict.fromkeys(METHOD, "SamplingFreeRetinaNet"),
        "focal": "RetinaNet",
        "ohem": "OHEMRetinaNet",
        "ghm": "GHMRetinaNet",
    },
    FASTER_YAML: {
        **dict.fromkeys(METHOD, ("SamplingFreeRPN", "SamplingFreeStandardROIHeads")),
        "sampled": ("RPN", "StandardROIHeads"),
        "ohem": ("RPN", "OHEMStandardROIHeads"),
        "ghm": ("GHMRPN", "StandardROIHeads"),
    },
}


YAML_CASES = [(config, name) for config, variants in YAML_EXPECTED.items() for name in variants]


def names_in(cfg):
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        return cfg.MODEL.META_ARCHITECTURE
    return cfg.MODEL.PROPOSAL_GENERATOR.NAME, cfg.MODEL.ROI_HEADS.NAME


@pytest.mark.parametrize(("config", "name"), YAML_CASES)
def test_the_names_of_each_variant_in_yaml_and_that_they_build(config, name):
    cfg = stock(config)
    before = cfg.clone()
    result = varied(cfg, name)
    assert names_in(result) == YAML_EXPECTED[config][name]
    assert cfg == before and isinstance(result, CfgNode)
    # The same parameters as Detectron2's.
    keys = []
    for node in (cfg, result):
        node = node.clone()
        node.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            keys.append({k for k in build_model(node).state_dict() if "ghm" not in k})
    assert keys[0] == keys[1]
    if name in METHOD:
        assert result.MODEL.SAMPLING_FREE.GUIDE == (1.0 if name == "all_samples" else None)
    for other in YAML_EXPECTED[config]:
        again = varied(result, other)
        assert names_in(again) == YAML_EXPECTED[config][other]
        if other == "sampled":
            assert again.MODEL.RPN.BBOX_REG_LOSS_WEIGHT == 1.0
            assert again.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT == 1.0
        if other == "sampling_free":
            assert again.MODEL.SAMPLING_FREE.GUIDE is None


def test_the_rpn_of_a_proposal_network_and_precomputed_proposals_in_yaml():
    cfg = stock("COCO-Detection/rpn_R_50_FPN_1x.yaml")
    assert varied(cfg, "ohem").MODEL.PROPOSAL_GENERATOR.NAME == "OHEMRPN"
    assert varied(cfg, "ghm").MODEL.PROPOSAL_GENERATOR.NAME == "GHMRPN"
    cfg = stock("COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml")
    assert varied(cfg, "ohem").MODEL.ROI_HEADS.NAME == "OHEMStandardROIHeads"
    assert "does not apply" in message(varied, cfg, "ghm")


def test_settings_that_only_the_method_has_go_in_yaml():
    cfg = get_cfg()
    add_sampling_free_config(cfg)
    cfg.merge_from_file(str(ROOT / RETINANET_YAML))
    cfg.MODEL.META_ARCHITECTURE = "SamplingFreeRetinaNet"
    cfg.MODEL.SAMPLING_FREE.TEST_SCORE_THRESH = "prior"
    cfg.freeze()
    result = varied(cfg, "focal")
    assert result.MODEL.SAMPLING_FREE.TEST_SCORE_THRESH is None and result.is_frozen()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = "SamplingFreeFCOS"  # Detectron2 has no FCOS in YAML
    assert message(varied, cfg, "focal").endswith("those that do: sampling_free, all_samples")
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    assert "MODEL.META_ARCHITECTURE = SemanticSegmentor" in message(varied, cfg, "focal")
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NAME = "RotatedROIHeads"
    assert "MODEL.ROI_HEADS.NAME = RotatedROIHeads" in message(varied, cfg, "sampled")


def test_a_yaml_config_that_a_run_has_saved(tmp_path):
    cfg = load_config(FASTER_YAML)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    loaded = load_config(str(tmp_path / "config.yaml"), variant="ohem")
    assert loaded.cfg.MODEL.ROI_HEADS.NAME == "OHEMStandardROIHeads"


def test_overrides_come_after_the_variant():
    cfg = load_config(RETINANET, ["model.bins=10", "model.momentum=0.5"], variant="ghm")
    assert cfg.model._target_ is GHMRetinaNet and cfg.model.bins == 10
    assert "did you mean model.bins" in message(
        load_config, RETINANET, ["model.bin=1"], False, "ghm"
    )
    overrides = ["MODEL.SAMPLING_FREE.GUIDE", "0.002", "MODEL.SAMPLING_FREE.PRIOR", "0.01"]
    node = load_config(FASTER_YAML, overrides, variant="all_samples").cfg.MODEL
    assert (node.SAMPLING_FREE.GUIDE, node.SAMPLING_FREE.PRIOR) == (0.002, 0.01)
    assert load_config(FASTER_YAML, variant="all_samples").cfg.MODEL.SAMPLING_FREE.GUIDE == 1.0


def test_sampling_free_is_short_for_the_variant_of_that_name():
    a, b = load_config(MASK_FPN, [], True), load_config(MASK_FPN, variant="sampling_free")
    assert differing(a, b) == set()
    assert differing(a, load_config(MASK_FPN, [], True, "sampling_free")) == set()
    line = message(load_config, MASK_FPN, [], True, "ohem")
    assert line == "--sampling-free and --variant ohem: give one of the two"


def test_one_override_switches_a_config_of_detectron2s():
    cfg = load_config(RETINANET, ["model._target_=sampling_free.GHMRetinaNet"])
    assert type(tiny(cfg.model)) is GHMRetinaNet
    cfg = load_config(MASK_FPN, ["model.roi_heads._target_=sampling_free.OHEMStandardROIHeads"])
    assert type(tiny(cfg.model).roi_heads) is OHEMStandardROIHeads


def test_the_command_line_lists_the_names_and_refuses_others(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_net.py", *arguments])
        with pytest.raises(SystemExit) as e:
            runpy.run_path(str(REPO / "train_net.py"), run_name="__main__")
        return e.value.code, *capsys.readouterr()

    code, out, _ = call("--help")
    assert code == 0 and all(f"{name}:" in " ".join(out.split()) for name in VARIANTS)
    code, _, err = call("--config-file", RETINANET, "--variant", "focul")
    assert code == 2 and only_error(err).endswith("sampled, ohem, ghm")
    code, _, err = call("--config-file", RETINANET, "--variant", "ohem", "--sampling-free")
    assert code == 2 and "give one of the two" in only_error(err)


GHM = """
from sampling_free import as_variant
model = as_variant(model, "ghm", quiet=True)
"""


def test_a_resumed_ghm_run_equals_one_without_a_stop(tmp_path):
    paths = []
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        paths.append(write_config(tmp_path / name, GHM))
    run(paths[0])
    run_until(4, paths[1])
    assert run(paths[1], resume=True).start_iter == 3
    whole, stopped = (load(tmp_path / n / "out" / "model_final.pth") for n in ("whole", "stopped"))
    assert whole["model"]["ghm.counts"].sum() > 0
    assert same(whole["model"], stopped["model"])
    assert same(whole["trainer"]["_trainer"], stopped["trainer"]["_trainer"])
