"""Test thresholds from the prior in YAML configs, and from end to end."""

import json

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine import TrainerBase
from detectron2.modeling import build_model

import demo
from helpers.guide_runs import changed, weights, yaml_run
from helpers.prior_thresholds import THETAS, compared, line, numbers
from helpers.tiny import tiny_retinanet
from helpers.tiny_run import FOCAL, load, train_net, write_config
from helpers.yaml_files import FASTER, RETINANET, zoo
from sampling_free import BadInput, PriorInit, add_sampling_free_config, convert, load_trained
from sampling_free.config.load import load_config
from sampling_free.engine.trainer import LazyTrainer, evaluate_only

pytest_plugins = ["helpers.guide_runs"]


@pytest.mark.parametrize("mode", ["prior", "per_class"])
def test_a_stock_detector_has_no_mode_for_its_threshold(runs, refused, tmp_path, mode):
    arguments = [write_config(tmp_path, FOCAL), "--eval-only", weights(runs["iteration"])]
    assert "model.test_score_thresh" in refused(*arguments, f"model.test_score_thresh={mode}")


def test_the_threshold_comes_with_the_checkpoint(runs, monkeypatch):
    seen = []
    monkeypatch.setattr(
        LazyTrainer, "test", lambda cfg, model: seen.append(model.test_score_thresh) or {}
    )
    counts = json.loads((runs["frozen"] / "out" / "prior.json").read_text())
    num_valid, per_class = counts["num_valid"], list(counts["per_class"].values())
    for mode in ("prior", "per_class", "0.25"):
        options = [f"model.test_score_thresh={mode}", weights(runs["frozen"])]
        evaluate_only(load_config(str(runs["frozen"] / "config.py"), options))
    assert seen[0] == pytest.approx(counts["num_foreground"] / num_valid)
    assert seen[1].tolist() == pytest.approx([max(n, 1) / num_valid for n in per_class])
    assert seen[2] == 0.25


def test_the_prior_of_another_trainers_checkpoint_is_found_where_detectron2_keeps_it(tmp_path):
    hook = PriorInit(None, None)
    hook.load_state_dict({"prior": 0.02, "estimate": None})
    trainer = TrainerBase()
    trainer.register_hooks([hook])
    trainer.iter = 7
    model = tiny_retinanet(test_score_thresh="prior")
    checkpointer = DetectionCheckpointer(model, str(tmp_path), trainer=trainer)
    checkpointer.save("model_final")
    fresh = tiny_retinanet(test_score_thresh="prior", seed=1)
    load_trained(fresh, str(tmp_path / "model_final.pth"))
    assert fresh.prior == 0.02 and fresh.test_score_thresh == pytest.approx(0.02 * 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters()))


@pytest.mark.parametrize("mode", ["prior", "per_class"])
def test_no_detection_scores_below_its_threshold(runs, mode, main, tmp_path):
    counts = json.loads((runs["gradient"] / "out" / "prior.json").read_text())
    config = runs["gradient"] / "config.py"
    options = ["--eval-only", weights(runs["gradient"]), f"train.output_dir={tmp_path}"]
    options.append(f"model.test_score_thresh={mode}")
    if mode == "prior":
        assert main(config, *options)[0] == 0
    else:  # as a process of its own
        done = train_net(config, *options)
        assert done.code == 0 and "Traceback" not in done.out + done.err, done.err
        assert "Prior of the training set" not in done.out
    detections = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    assert {x["category_id"] for x in detections} <= {1, 2, 3, 4, 5}
    thetas = [max(n, 1) / counts["num_valid"] for n in counts["per_class"].values()]
    total = counts["num_foreground"] / counts["num_valid"]
    for x in detections:
        limit = total if mode == "prior" else thetas[x["category_id"] - 1]
        assert x["score"] > limit * (1 - 1e-4)  # rounded in the file
    assert mode == "prior" or detections


def test_weights_without_a_prior_are_refused_for_a_mode(runs, refused, tmp_path):
    config = runs["iteration"] / "config.py"
    bare = changed(runs["iteration"], tmp_path, lambda x: x.pop("prior"))
    for mode in ("prior", "per_class"):
        line = refused(config, "--eval-only", bare, f"model.test_score_thresh={mode}")
        assert f"model.test_score_thresh={mode!r}: no prior is stored" in line


def test_a_stored_prior_of_other_classes_is_refused(runs, refused, tmp_path):
    config = runs["iteration"] / "config.py"
    of_list = changed(runs["iteration"], tmp_path, lambda x: x["prior"].update(prior=[0.1] * 4))
    line = refused(config, "--eval-only", of_list, "model.test_score_thresh=per_class")
    assert "4 class(es), this model has 5" in line
    counts = changed(
        runs["iteration"], tmp_path, lambda x: x["prior"]["estimate"]["per_class"].popitem()
    )
    line = refused(config, "--eval-only", counts, "model.test_score_thresh=per_class")
    assert "4 class(es), this model has 5" in line


def test_a_threshold_that_no_training_can_give_is_refused_before_the_training(
    runs, refused, tmp_path
):
    options = [f"train.output_dir={tmp_path}", "train.max_iter=1", "model.prior=0.01"]
    line = refused(runs["iteration"] / "config.py", *options, "model.test_score_thresh=per_class")
    assert "model.test_score_thresh='per_class'" in line
    assert not (tmp_path / "model_final.pth").exists()


def test_the_demo_script_takes_the_threshold_from_the_checkpoint(runs):
    folder = runs["frozen"]
    cfg = load_config(str(folder / "config.py"), ["model.test_score_thresh=per_class"])
    model = demo.load_model(cfg, str(folder / "out" / "model_final.pth"))
    counts = json.loads((folder / "out" / "prior.json").read_text())
    expected = [max(n, 1) / counts["num_valid"] for n in counts["per_class"].values()]
    assert model.test_score_thresh.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("mode", ["prior", "per_class"])
def test_a_yaml_config_evaluates_with_the_prior_of_the_checkpoint(tiny, tmp_path, mode):
    config = tiny(RETINANET)
    pairs = ["SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()"]
    yaml_run(config, *pairs, "DATASETS.TEST", "()")
    mode_pairs = ["MODEL.SAMPLING_FREE.TEST_SCORE_THRESH", mode]
    path = str(tmp_path / "out" / "model_final.pth")
    cfg = load_config(config, [*pairs, *mode_pairs, "MODEL.WEIGHTS", path], True)
    assert "bbox" in evaluate_only(cfg)
    checkpoint = load(path)
    checkpoint.pop("prior")
    torch.save(checkpoint, path)
    with pytest.raises(BadInput, match="no prior is stored") as error:
        evaluate_only(cfg)
    assert len(str(error.value).splitlines()) == 1


def small(base, **changes):
    cfg = convert(zoo(base), quiet=True)
    sizes = dict(RESNETS__STEM_OUT_CHANNELS=8, RESNETS__RES2_OUT_CHANNELS=8, FPN__OUT_CHANNELS=32,
                 RESNETS__WIDTH_PER_GROUP=8, ROI_BOX_HEAD__FC_DIM=8, RESNETS__DEPTH=50)  # fmt: skip
    for key, value in {**sizes, "DEVICE": "cpu", "WEIGHTS": "", **changes}.items():
        cfg.merge_from_list([f"MODEL.{key.replace('__', '.')}", value])
    return cfg


@pytest.mark.parametrize("kind", ["RetinaNet", "FCOS", "ATSS", "PAA"])
def test_the_key_of_a_yaml_config(kind):
    changes = dict(META_ARCHITECTURE=f"SamplingFree{kind}", RETINANET__NUM_CLASSES=3)
    node = dict(SAMPLING_FREE__PRIOR=THETAS, SAMPLING_FREE__TEST_SCORE_THRESH="per_class")
    model = build_model(small(RETINANET, **changes, **node))
    expected = [compared(kind.lower(), x) for x in THETAS]
    assert numbers(model.test_score_thresh) == pytest.approx(expected)
    model = build_model(small(RETINANET, **changes, SAMPLING_FREE__TEST_SCORE_THRESH=0.3))
    assert model.test_score_thresh == 0.3
    cfg = small(RETINANET, **changes, SAMPLING_FREE__TEST_SCORE_THRESH="best")
    assert "known: prior, per_class" in line(build_model, cfg)


def test_the_key_of_a_yaml_config_is_not_ignored_by_a_roi_head():
    cfg = small(FASTER, SAMPLING_FREE__TEST_SCORE_THRESH="prior")
    assert "TEST_SCORE_THRESH" in line(build_model, cfg)


def test_the_default_of_the_yaml_key_is_the_detectors_own_number():
    cfg = get_cfg()
    add_sampling_free_config(cfg)
    assert cfg.MODEL.SAMPLING_FREE.TEST_SCORE_THRESH is None
    model = build_model(small(RETINANET, RETINANET__SCORE_THRESH_TEST=0.123))
    assert model.test_score_thresh == 0.123
