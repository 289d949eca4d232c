"""The numbers that somebody chose in OHEM, GHM-C and the other variants."""

import pytest
from omegaconf import OmegaConf
from test_knobs import (
    FASTER_YAML,
    FOCAL,
    RETINANET_YAML,
    ROI_SAMPLER,
    ROI_YAML,
    RPN_SAMPLER,
    RPN_YAML,
    SAMPLERS,
    SAMPLERS_YAML,
    knobs,
    run,
    values,
)

from helpers.small_zoo import MASK_FPN, RETINANET
from sampling_free.baselines.retinanet import GHMRetinaNet, OHEMRetinaNet
from sampling_free.baselines.roi_heads import OHEMStandardROIHeads
from sampling_free.baselines.rpn import GHMRPN, OHEMRPN
from sampling_free.config.load import load_config
from sampling_free.knobs import list_knobs

# The baselines --------------------------------------------------------------------------------

HARD = {"hard_per_image": 64, "hard_nms_thresh": 0.7}
GHM = {"bins": 30, "momentum": 0.75}
PRIOR = {"model.head.prior_prob": 0.01}


def under(where, found):
    return {f"{where}.{k}": v for k, v in found.items()}


@pytest.mark.parametrize(
    ("path", "key", "cls", "expected"),
    [
        (
            RETINANET,
            "model",
            OHEMRetinaNet,
            {"model.hard_per_image": 128, "model.hard_nms_thresh": 0.5, **PRIOR},
        ),
        (RETINANET, "model", GHMRetinaNet, {**under("model", GHM), **PRIOR}),
        (
            MASK_FPN,
            "model.proposal_generator",
            OHEMRPN,
            {
                "model.proposal_generator.batch_size_per_image": 256,
                "model.proposal_generator.hard_nms_thresh": 0.7,
                **ROI_SAMPLER,
            },
        ),
        (
            MASK_FPN,
            "model.proposal_generator",
            GHMRPN,
            {**under("model.proposal_generator", GHM), **ROI_SAMPLER},
        ),
        (
            MASK_FPN,
            "model.roi_heads",
            OHEMStandardROIHeads,
            {**RPN_SAMPLER, **under("model.roi_heads", HARD)},
        ),
    ],
)
def test_a_baseline_in_a_lazyconfig(path, key, cls, expected):
    # What the class accepts and does not use stays in the config.
    cfg = load_config(path)
    OmegaConf.select(cfg, key)._target_ = cls
    assert values(list_knobs(cfg).knobs) == expected
    own = next(k for k in expected if k.startswith(f"{key}.") and isinstance(expected[k], int))
    OmegaConf.update(cfg, own, 17)
    assert values(list_knobs(cfg).knobs) == {**expected, own: 17}


@pytest.mark.parametrize(
    ("path", "override", "expected"),
    [
        (
            RETINANET_YAML,
            "MODEL.META_ARCHITECTURE=GHMRetinaNet",
            {**under("model", GHM), "MODEL.RETINANET.PRIOR_PROB": 0.01},
        ),
        (
            FASTER_YAML,
            "MODEL.PROPOSAL_GENERATOR.NAME=OHEMRPN",
            {
                "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
                "model.proposal_generator.hard_nms_thresh": 0.7,
                **ROI_YAML,
            },
        ),
        (
            FASTER_YAML,
            "MODEL.ROI_HEADS.NAME=OHEMStandardROIHeads",
            {**RPN_YAML, **under("model.roi_heads", HARD)},
        ),
    ],
)
def test_a_baseline_in_a_yaml_config(path, override, expected):
    """Its own numbers have no YAML keys and are the published ones."""
    assert knobs(path, override) == expected


OHEM = {"hard_per_image": 128, "hard_nms_thresh": 0.5}


@pytest.mark.parametrize(
    ("path", "variant", "expected"),
    [
        (RETINANET, "all_samples", {"model.guide": 1.0}),
        (RETINANET, "focal", FOCAL),
        (RETINANET, "ohem", {**under("model", OHEM), **PRIOR}),
        (RETINANET, "ghm", {**under("model", GHM), **PRIOR}),
        (
            MASK_FPN,
            "all_samples",
            {"model.proposal_generator.guide": 1.0, "model.roi_heads.box_predictor.guide": 1.0},
        ),
        (MASK_FPN, "sampled", SAMPLERS),
        (MASK_FPN, "ohem", {**RPN_SAMPLER, **under("model.roi_heads", HARD)}),
        (MASK_FPN, "ghm", {**under("model.proposal_generator", GHM), **ROI_SAMPLER}),
        (FASTER_YAML, "all_samples", {"MODEL.SAMPLING_FREE.GUIDE": 1.0}),
        (FASTER_YAML, "sampled", SAMPLERS_YAML),
    ],
)
def test_a_variant_has_knobs_and_the_method_has_none(path, variant, expected, monkeypatch, capsys):
    assert knobs(path, variant=variant) == expected
    assert knobs(path, variant="sampling_free") == {}
    capsys.readouterr()
    out = run(monkeypatch, capsys, "--config-file", path, "--variant", variant)
    assert f"Imbalance knobs: {len(expected)}." in out and all(k in out for k in expected)
