"""train_net.py with every guide, from end to end."""

import shutil

import pytest
import torch
from detectron2.config import instantiate

from helpers.guide_runs import weights, yaml_run
from helpers.tiny_run import (
    FOCAL,
    load,
    log_lines,
    metrics,
    run,
    same,
    write_config,
)
from helpers.yaml_files import FASTER, RETINANET
from sampling_free.config.load import load_config

pytest_plugins = ["helpers.guide_runs"]

STATE = {"guide.ratio", "guide.num_batches", "guide.log_sigmas"}


def guide_entries(checkpoint):
    return {k: v for k, v in checkpoint["model"].items() if "guide" in k.split(".")}


def test_only_frozen_leaves_a_state_in_the_checkpoint(runs):
    found = {g: load(f / "out" / "model_final.pth") for g, f in runs.items()}
    keys = {g: set(x["model"]) for g, x in found.items()}
    assert keys["gradient"] == keys["iteration"] == keys["frozen"] - STATE
    state = guide_entries(found["frozen"])
    assert set(state) == STATE and state["guide.num_batches"] == 6
    assert all(x != 0 for x in state["guide.log_sigmas"].tolist())
    rows = {g: metrics(f / "out")[5] for g, f in runs.items()}
    assert all("guide/r" in x for x in rows.values())
    assert ["loss_guide" in rows[g] for g in ("iteration", "gradient", "frozen")] == [0, 0, 1]


@pytest.mark.parametrize("guide", ["frozen", "gradient"])
def test_a_resumed_run_equals_the_whole_one_to_the_last_bit(runs, guide, tmp_path):
    out = runs[guide] / "out"
    shutil.copy(out / "model_0000002.pth", tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    config = str(runs[guide] / "config.py")
    with log_lines() as lines:
        resumed = run(config, f"train.output_dir={tmp_path}", resume=True)
    assert resumed.start_iter == 3 and not any("starts anew" in x for x in lines)
    a, b = (load(x / "model_final.pth") for x in (tmp_path, out))
    assert same(a["model"], b["model"]) and same(a["prior"], b["prior"])
    assert same(a["trainer"]["_trainer"], b["trainer"]["_trainer"])
    whole, part = metrics(out), metrics(tmp_path)
    assert all(part[i]["guide/r"] == whole[i]["guide/r"] for i in (3, 4, 5))


def test_what_a_frozen_guide_knows_of_other_data_is_forgotten(runs, tmp_path):
    options = [f"train.output_dir={tmp_path}", "train.max_iter=1", weights(runs["frozen"])]
    with log_lines() as lines:
        made = run(str(runs["frozen"] / "config.py"), *options, "optimizer.lr=0.0")
    assert any("guide" in x and "starts anew" in x for x in lines)
    assert made.model.guide.num_batches == 1 and not made.model.guide.log_sigmas.any()
    assert made.model.guide.ratio.item() == pytest.approx(metrics(tmp_path)[0]["guide/r"])


def test_weights_are_fine_tuned_and_evaluated_with_any_other_guide(runs, main, tmp_path):
    def short(name):
        return f"train.output_dir={tmp_path}/{name}", "train.max_iter=1"

    for old, new in (("iteration", "frozen"), ("frozen", "gradient")):
        config = runs[new] / "config.py"
        assert main(config, *short(new), weights(runs[old]))[0] == 0
        assert main(config, "--eval-only", *short("eval"), weights(runs[old])) == (0, "")


@pytest.mark.parametrize("guide", ["frozen", "gradient"])
def test_a_run_in_mixed_precision(runs, guide, tmp_path):
    amp = ["train.amp.enabled=True", "train.amp.dtype=bfloat16", "train.max_iter=2"]
    made = run(str(runs[guide] / "config.py"), f"train.output_dir={tmp_path}", *amp)
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in made.model.parameters())
    rows, whole = metrics(tmp_path), metrics(runs[guide] / "out")
    assert rows[0]["guide/r"] == pytest.approx(whole[0]["guide/r"], rel=0.05)


@pytest.mark.parametrize("guide", ["frozen", "gradient"])
def test_the_evaluation_repeats_that_at_the_end_of_training(runs, guide, main, tmp_path):
    out = runs[guide] / "out"
    scores = {k: v for k, v in metrics(out)[6].items() if k in ("bbox/AP", "bbox/AP50")}
    rows = ",".join(f"[bbox,{k[5:]},{v},1e-9]" for k, v in scores.items())
    arguments = ["--eval-only", weights(runs[guide]), f"train.output_dir={tmp_path}"]
    config = runs[guide] / "config.py"
    assert main(config, *arguments, f"train.expected_results=[{rows}]")[0] == 0
    assert len(scores) == 2


def test_a_stock_detector_evaluates_the_weights_of_a_frozen_run(runs, main, tmp_path):
    config = write_config(tmp_path, FOCAL)
    assert main(config, "--eval-only", weights(runs["frozen"])) == (0, "")


def test_a_constant_of_the_config_may_become_any_guide(runs, tmp_path):
    """As of the configs without a guide, whose model.guide is 1.0."""
    config = tmp_path / "config.py"
    config.write_text((runs["iteration"] / "config.py").read_text() + "model.guide = 1.0\n")
    for guide in ("iteration", "gradient", "frozen"):
        cfg = load_config(str(config), [f"model.guide={guide}"])
        assert instantiate(cfg.model).guide.key == guide


@pytest.mark.parametrize(
    "override, parts",
    [
        ("model.guide=frosen", ["model.guide='frosen'", "'iteration', 'gradient', 'frozen'"]),
        ("model.guide=-1", ["model.guide=-1", "number >= 0"]),
        ("model.test_score_thresh=priors", ["model.test_score_thresh='priors'", "per_class"]),
        ("model.prior=[0.1,0.2]", ["model.prior=[0.1, 0.2]", "5 class(es)"]),
    ],
)
def test_a_wrong_value_is_one_line(runs, refused, override, parts):
    line = refused(runs["iteration"] / "config.py", override)
    assert all(x in line for x in parts), line


# YAML ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base, num_guides", [(RETINANET, 1), (FASTER, 2)])
@pytest.mark.parametrize("guide", ["frozen", "gradient"])
def test_a_yaml_config_trains_and_resumes_with_the_guide(tiny, tmp_path, base, num_guides, guide):
    pairs = ["MODEL.SAMPLING_FREE.GUIDE", guide, "DATASETS.TEST", "()"]
    whole = yaml_run(tiny(base), *pairs)
    keys = [m.key for m in whole.model.modules() if hasattr(m, "by_gradient")]
    assert keys == [guide] * num_guides
    part = tmp_path / "part"
    part.mkdir()
    shutil.copy(tmp_path / "out" / "model_0000001.pth", part)
    (part / "last_checkpoint").write_text("model_0000001.pth")
    yaml_run(tiny(base), *pairs, "OUTPUT_DIR", str(part), resume=True)
    a, b = (load(x / "model_final.pth") for x in (tmp_path / "out", part))
    assert same(a["model"], b["model"])
    assert same(a["trainer"]["_trainer"], b["trainer"]["_trainer"])
    assert len(guide_entries(a)) == (3 * num_guides if guide == "frozen" else 0)
