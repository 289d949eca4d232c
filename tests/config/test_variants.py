"""Variants by name: what each makes of each detector, from any other, and where none applies."""

import pytest
from detectron2.modeling import ProposalNetwork, RetinaNet
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

from helpers.small_zoo import (
    CASCADE,
    FCOS_CONFIG,
    MASK_C4,
    MASK_FPN,
    RETINANET,
    differing,
    inputs_of,
    stock,
    training_step,
)
from helpers.variants_cases import METHOD, message, tiny, varied
from sampling_free import (
    ATSS,
    PAA,
    VARIANTS,
    SamplingFreeATSS,
    SamplingFreePAA,
    as_variant,
    convert,
)
from sampling_free.config.load import load_config

OURS = "SamplingFree"
PLAIN = "FastRCNNOutputLayers"
# The classes of each variant: of a dense detector, or of RPN, RoI heads and box predictors.
EXPECTED = {
    RETINANET: {
        **dict.fromkeys(METHOD, ["SamplingFreeRetinaNet"]),
        "focal": ["RetinaNet"],
        "ohem": ["OHEMRetinaNet"],
        "ghm": ["GHMRetinaNet"],
    },
    FCOS_CONFIG: {**dict.fromkeys(METHOD, ["SamplingFreeFCOS"]), "focal": ["FCOS"]},
}
for config, kind, stages in (
    (MASK_FPN, "Standard", 1),
    (MASK_C4, "Res5", 1),
    (CASCADE, "Cascade", 3),
):
    heads = [f"{kind}ROIHeads", *[PLAIN] * stages]
    EXPECTED[config] = {
        **dict.fromkeys(METHOD, [f"{OURS}{x}" for x in ("RPN", *heads)]),
        "sampled": ["RPN", *heads],
        **({"ohem": ["RPN", f"OHEM{heads[0]}", PLAIN]} if kind == "Standard" else {}),
        "ghm": ["GHMRPN", *heads],
    }
CASES = [(config, name) for config, variants in EXPECTED.items() for name in variants]
NO_CASES = [(c, n) for c in EXPECTED for n in VARIANTS if n not in EXPECTED[c]]
# From each variant to the one before it and to the one after.
PAIRS = [
    (config, first, second)
    for config in (RETINANET, MASK_FPN)
    for names in ([*EXPECTED[config]], [*EXPECTED[config]][::-1])
    for first, second in zip(names, [*names[1:], names[0]])
]


def names_of(*nodes):
    return [x._target_.__name__ for x in nodes]


def parts_of(model):
    """The nodes of the classes that a variant exchanges."""
    if "roi_heads" not in model:
        return [model]
    heads = model.roi_heads
    predictors = heads.get("box_predictors") or [heads.box_predictor]
    return [model.proposal_generator, heads, *predictors]


@pytest.mark.parametrize(("config", "name"), CASES)
def test_the_classes_of_each_variant_and_that_the_model_trains(config, name):
    cfg = stock(config)
    result = varied(cfg, name)
    dense, *heads = parts_of(result.model)
    assert names_of(dense, *heads) == EXPECTED[config][name]
    assert differing(cfg, stock(config)) == set()  # the argument
    guides = {head.get("guide", None) for head in (dense, *heads[1:])}
    assert guides == ({1.0} if name == "all_samples" else {None})
    # The whole config, its model node, and the whole again: the same.
    node = varied(cfg.model, name)
    assert differing(result.model, node) == set()
    assert differing(varied(result, name), result) == set()
    training_step(tiny(node), inputs_of(80))


@pytest.mark.parametrize(("config", "first", "second"), PAIRS)
def test_from_one_variant_to_another(config, first, second):
    direct, detour = varied(stock(config), second), varied(varied(stock(config), first), second)
    different = differing(direct.model, detour.model)
    # What a conversion drops or lowers stays so; what is unused may be missing.
    allowed = ("test_score_thresh", "focal_loss_alpha", "focal_loss_gamma")
    unused = ("batch_size_per_image", "positive_fraction")
    different = {k for k in different if not k.endswith(allowed + unused)}
    assert different == set()
    if second in ("focal", "sampled"):
        lowered = {k for k in differing(direct.model, detour.model) if "thresh" not in k}
        assert lowered == set()


def test_detectron2s_numbers_come_back():
    model = varied(convert(stock(RETINANET), quiet=True), "focal").model
    assert (model.focal_loss_alpha, model.focal_loss_gamma) == (0.25, 2.0)
    assert not {"prior", "guide", "box_reg_loss_weight"} & set(model)
    assert model.test_score_thresh == 0.001  # left as it is
    model = varied(convert(stock(MASK_FPN), quiet=True), "sampled").model
    rpn, heads = model.proposal_generator, model.roi_heads
    assert (rpn.batch_size_per_image, rpn.positive_fraction) == (256, 0.5)
    assert (heads.batch_size_per_image, heads.positive_fraction) == (512, 0.25)
    assert "loss_weight" not in rpn and "loss_weight" not in heads.box_predictor


def test_numbers_of_the_users_own_stay_where_nothing_was_converted():
    cfg = stock(MASK_FPN)
    cfg.model.roi_heads.batch_size_per_image = 128
    cfg.model.roi_heads.box_predictor.loss_weight = {"loss_box_reg": 2.0}
    cfg.model.proposal_generator.loss_weight = 3.0
    for name in ("sampled", "ohem", "ghm"):
        model = varied(varied(cfg, name), "sampled").model
        assert differing(model, cfg.model) == set()
    cfg = stock(RETINANET)
    cfg.model.focal_loss_gamma = 1.5
    for name in ("focal", "ohem", "ghm"):
        assert varied(varied(cfg, name), "focal").model.focal_loss_gamma == 1.5


def test_a_threshold_from_the_prior_becomes_a_number_where_there_is_none():
    for config, number in ((RETINANET, 1e-3), (FCOS_CONFIG, 0.0316)):
        cfg = convert(stock(config), quiet=True)
        cfg.model.test_score_thresh = "per_class"
        assert varied(cfg, "focal").model.test_score_thresh == number
        assert varied(cfg, "all_samples").model.test_score_thresh == "per_class"


def test_a_constant_guide_is_what_tells_all_samples_from_the_method():
    cfg = convert(stock(RETINANET), quiet=True)
    cfg.model.guide = "frozen"
    assert varied(cfg, "sampling_free").model.guide == "frozen"
    cfg.model.guide = 0.002
    assert "guide" not in varied(cfg, "sampling_free").model
    cfg.model.prior = 0.01
    assert varied(cfg, "all_samples").model.prior == 0.01


@pytest.mark.parametrize("cls, own", [(ATSS, SamplingFreeATSS), (PAA, SamplingFreePAA)])
def test_atss_and_paa(cls, own):
    cfg = stock(FCOS_CONFIG)
    cfg.model._target_ = cls
    assert varied(cfg, "sampling_free").model._target_ is own
    assert varied(varied(cfg, "all_samples"), "focal").model._target_ is cls
    assert "those that do: sampling_free, all_samples, focal" in message(varied, cfg, "ghm")


def test_parts_alone():
    model = stock(MASK_FPN).model
    rpn, heads = model.proposal_generator, model.roi_heads
    for name, expected in EXPECTED[MASK_FPN].items():
        # Alone, an RPN gets OHEM itself.
        assert names_of(varied(rpn, name)) == (["OHEMRPN"] if name == "ohem" else expected[:1])
        if name == "ghm":
            assert "roi_heads._target_ = StandardROIHeads" in message(varied, heads, name)
            continue
        result = varied(heads, name)
        assert names_of(result, result.box_predictor) == expected[1:]
        assert result.num_classes == result.mask_head.num_classes == 80  # references resolve
    assert differing(model, stock(MASK_FPN).model) == set()


def test_an_rpn_without_roi_heads_gets_ohem_itself_and_precomputed_proposals_no_ghm():
    node = stock(MASK_FPN).model
    node._target_ = ProposalNetwork
    del node["roi_heads"], node["input_format"]
    assert names_of(varied(node, "ohem").proposal_generator) == ["OHEMRPN"]
    training_step(tiny(varied(node, "ohem")), inputs_of(80))
    node = stock(MASK_FPN).model
    node.proposal_generator = None
    assert names_of(varied(node, "ohem").roi_heads) == ["OHEMStandardROIHeads"]
    line = message(varied, node, "ghm")
    assert "those that do: sampling_free, all_samples, sampled, ohem" in line


@pytest.mark.parametrize(("config", "name"), NO_CASES)
def test_where_a_variant_does_not_apply_those_that_do_are_listed(config, name):
    for cfg in (stock(config), convert(stock(config), quiet=True)):
        line = message(varied, cfg, name)
        assert f"variant {name!r} does not apply" in line
        assert line.endswith(f"those that do: {', '.join(EXPECTED[config])}")
        assert "model" in line.split(":")[0]


def test_an_unknown_name_lists_the_known_ones():
    names = "sampling_free, all_samples, focal, sampled, ohem, ghm"
    line = f"variant 'focul' is unknown; known: {names}"
    assert message(as_variant, stock(RETINANET), "focul") == line
    assert line in message(load_config, RETINANET, [], False, "focul")


class OwnRetinaNet(RetinaNet):
    pass


class OwnPredictor(FastRCNNOutputLayers):
    pass


def test_what_is_not_known_is_named():
    cfg = stock(RETINANET)
    cfg.model._target_ = OwnRetinaNet
    line = message(varied, cfg, "ghm")
    assert line.startswith("model._target_ = test_variants.OwnRetinaNet: no variant of it is known")
    cfg = stock(MASK_FPN)
    cfg.model.roi_heads.box_predictor._target_ = OwnPredictor
    assert "model.roi_heads.box_predictor._target_ = test_variants.OwnPredictor" in message(
        varied, cfg, "ohem"
    )
    assert "take a LazyConfig, a node of one or a CfgNode, not dict" in message(varied, {}, "ohem")


def test_what_has_changed_is_printed(capsys):
    as_variant(convert(stock(RETINANET), quiet=True), "ghm")
    assert capsys.readouterr().out.splitlines() == [
        "Made the variant ghm:",
        "  model: SamplingFreeRetinaNet -> GHMRetinaNet",
        "  model.prior: auto -> (dropped)",
    ]
    as_variant(stock(RETINANET), "focal")
    assert capsys.readouterr().out.endswith("Made the variant focal:\n  nothing left to change\n")
