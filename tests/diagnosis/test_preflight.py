"""check_imbalance: from a config to counts, weights and one batch, as the training would see it."""

import math

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from helpers.tiny_run import FOCAL, log_lines, run, write_config
from helpers.yaml_files import C4, FASTER, RETINANET
from sampling_free.config.load import load_config
from sampling_free.counting.estimate import estimate_prior
from sampling_free.diagnosis import check as preflight
from sampling_free.diagnosis.check import check_imbalance
from sampling_free.diagnosis.gradients import measure
from sampling_free.diagnosis.report import Imbalance, verdicts
from sampling_free.method.prior import start_loss
from sampling_free.utils.errors import BadInput


def check(config, *overrides, **kwargs):
    return check_imbalance(load_config(str(config), list(overrides)), **kwargs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("trained")
    run(write_config(folder), "train.max_iter=3", "optimizer.lr=0.01")
    return folder


def test_the_prior_is_that_which_the_training_measures(trained, tmp_path):
    found = check(trained / "config.py")
    assert found.objects.keys() == found.estimate.per_class.keys()
    assert sum(found.objects.values()) == found.estimate.num_objects  # every view shows all
    stored = type(found.estimate).load(str(trained / "out" / "prior.json"))
    assert found.estimate == stored
    (head,) = found.measurement.heads
    assert head.scores["background"] == pytest.approx(stored.prior, rel=0.1)
    assert found.num_images == 2 and found.num_images_of_set == 12
    assert found.weights == "random weights" and not found.is_yaml
    assert found.least_loss(head) == pytest.approx(stored.start_loss())
    of_batch = start_loss(stored.prior, head.num_foreground, head.num_valid, 5)
    assert head.cross_entropy == pytest.approx(of_batch, rel=0.1)


def test_a_given_prior_is_the_start_and_the_counts_are_measured_all_the_same(trained):
    found = check(trained / "config.py", "model.prior=0.3")
    (head,) = found.measurement.heads
    assert head.scores["background"] == pytest.approx(0.3, rel=0.05)
    assert found.estimate == check(trained / "config.py").estimate
    assert any("set model.prior to 'auto'" in x for x in verdicts(found))


def test_a_prior_for_each_class(trained):
    found = check(trained / "config.py", "model.prior=per_class")
    (head,) = found.measurement.heads
    mean = sum(found.estimate.class_priors) / 5
    assert head.scores["background"] == pytest.approx(mean, rel=0.1)


def test_a_stored_prior_is_read_or_refused_when_stale(trained, monkeypatch):
    monkeypatch.setattr(preflight, "estimate_prior", None)
    path = trained / "out" / "prior.json"
    assert check(trained / "config.py", f"train.prior_file={path}").estimate.num_images == 12
    options = f"train.prior_file={path}", "model.anchor_matcher.thresholds=[0.3,0.6]"
    with pytest.raises(BadInput, match="prior.json: stale: made with matcher thresholds"):
        check(trained / "config.py", *options)


@pytest.mark.parametrize("num, expected", [(1, 1), (5, 5), (12, 12), (10**9, 12)])
def test_at_most_so_many_images_are_counted_evenly_spread(trained, num, expected, monkeypatch):
    seen = []

    def spy(model, dicts, *args):
        seen.extend(x["image_id"] for x in dicts)
        return estimate_prior(model, dicts, *args, progress=False)

    monkeypatch.setattr(preflight, "estimate_prior", spy)
    found = check(trained / "config.py", max_images=num)
    assert found.estimate.num_images == len(set(seen)) == expected
    if expected == 5:
        gaps = [b - a for a, b in zip(seen, seen[1:])]
        assert max(gaps) - min(gaps) <= 1 and seen[-1] - seen[0] == 11


@pytest.mark.parametrize("is_fast, expected", [(True, 12), (False, 7)])
def test_without_a_number_all_are_counted_where_that_is_fast(
    trained, monkeypatch, is_fast, expected
):
    monkeypatch.setattr(preflight, "MOST_COUNTED", 7)
    # A size that is drawn for every image.
    slow = "dataloader.train.mapper.augmentations=[{_target_: detectron2.data.transforms.RandomCrop"
    slow += ", crop_type: relative, crop_size: [0.9, 0.9]}]"
    found = check(trained / "config.py", *([] if is_fast else [slow]))
    assert found.estimate.num_images == expected


@pytest.mark.parametrize("num", [0, -3, math.nan, True])
def test_no_images_are_refused(trained, num):
    with pytest.raises(BadInput, match="--images"):
        check(trained / "config.py", max_images=num)


def test_a_large_batch_is_cut_and_that_is_said(trained):
    with log_lines() as lines:
        found = check(trained / "config.py", "dataloader.train.total_batch_size=8")
    assert found.num_images == 4 and any("cut to 4 of 8 images" in x for x in lines)


# --- weights --------------------------------------------------------------------------------------


def test_a_head_that_a_checkpoint_filled_keeps_its_bias(trained):
    weights = trained / "out" / "model_final.pth"
    bias = torch.load(weights, weights_only=False)["model"]["head.cls_score.bias"]
    options = f"train.init_checkpoint={weights}", "model.prior=0.4"
    seen = []

    def spy(model, *args, **kwargs):
        seen.append(model.head.cls_score.bias.detach().clone())
        return measure(model, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "measure", spy)
        found = check(trained / "config.py", *options)
        check(trained / "config.py", *options, "train.reset_prior=True")
    assert torch.equal(seen[0], bias) and found.weights == f"weights of {weights}"
    assert seen[1].sigmoid().tolist() == pytest.approx([0.4] * len(bias))


def test_missing_weights_of_this_machine_are_one_line(trained, tmp_path):
    with pytest.raises(BadInput, match="absent.pth") as e:
        check(trained / "config.py", f"train.init_checkpoint={tmp_path / 'absent.pth'}")
    assert "\n" not in str(e.value)


def test_weights_that_cannot_be_fetched_are_replaced_and_that_is_said(tiny):
    url = "http://127.0.0.1:9/R-50.pkl"
    with log_lines() as lines:
        found = check(tiny(RETINANET), "MODEL.WEIGHTS", url)
    assert found.weights == f"random weights in place of {url}"
    assert any(url in x and "cannot be fetched" in x for x in lines)
    assert found.is_yaml and "random weights in place of" in found.text()


def test_frozen_normalization_is_fitted_to_the_batch():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            layers = [nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.ReLU(), FrozenBatchNorm2d(4)]
            self.backbone = nn.Sequential(*layers)

        def preprocess_image(self, images):
            return type("Images", (), {"tensor": torch.stack(images)})

    torch.manual_seed(0)
    model, images = Model(), list(5 + 3 * torch.randn(2, 3, 20, 20))
    preflight._stand_in(model, images)
    out = model.backbone(torch.stack(images))
    assert out.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0] * 4, abs=1e-4)
    assert out.std(dim=(0, 2, 3)).tolist() == pytest.approx([1] * 4, rel=1e-2)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_pass_with_values_that_are_not_finite_is_one_line(tiny, monkeypatch):
    build = preflight.instantiate

    def spoilt(node):
        made = build(node)
        if isinstance(made, nn.Module):
            with torch.no_grad():
                made.proposal_generator.rpn_head.conv.weight.fill_(math.nan)
        return made

    monkeypatch.setattr(preflight, "instantiate", spoilt)
    with pytest.raises(BadInput, match="first batch with random weights") as e:
        check(tiny(FASTER))
    assert "\n" not in str(e.value)


# --- batches and detectors ------------------------------------------------------------------------


def test_the_first_batch_with_an_object_is_taken():
    empty, full = ({"instances": [0] * n} for n in (0, 1))
    batches = [[empty, empty]] * 19 + [[empty, full], [full, full]]
    assert preflight._first_batch(batches) is batches[19]
    words = "not one object in the first 20 batches; set filter_empty=True"
    with pytest.raises(BadInput, match=words):
        preflight._first_batch([[empty, empty], *batches])


LAZY = {"sampling-free": "", "focal": FOCAL}


@pytest.mark.parametrize("name", LAZY)
def test_lazy_configs(tmp_path, name):
    found = check(write_config(tmp_path, LAZY[name]))
    (head,) = found.measurement.heads
    assert head.is_focal == (name == "focal") and found.text() and verdicts(found)
    assert sum(head.loss_parts.values()) == pytest.approx(found.measurement.losses["loss_cls"])


@pytest.mark.parametrize("sampling_free", [False, True])
@pytest.mark.parametrize("base", [RETINANET, FASTER, C4])
def test_yaml_configs_stock_and_turned(tiny, base, sampling_free):
    cfg = load_config(tiny(base), [], sampling_free)
    found = check_imbalance(cfg, "a.yaml")
    assert isinstance(found, Imbalance) and found.is_yaml
    assert found.text() and found.as_json()["verdicts"]
    heads = found.measurement.heads
    assert len(heads) == (1 if base == RETINANET else 2)
    assert heads[0].takes_all_anchors == (base == RETINANET or sampling_free)


def test_it_changes_no_later_training(trained, tmp_path):
    """What is looked at is thrown away: the same config trains as if nobody had looked."""
    states = []
    for looks in (False, True):
        (tmp_path / str(looks)).mkdir()
        config = write_config(tmp_path / str(looks))
        if looks:
            check(config)
        states.append(run(config, "train.max_iter=2").model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values()))
